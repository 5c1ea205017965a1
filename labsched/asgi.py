"""The application that the web server runs: HTTP and websockets."""

from __future__ import annotations

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "labsched.settings")
http = get_asgi_application()  # first: it loads the apps that the imports below need

from channels.routing import ProtocolTypeRouter  # noqa: E402

from labsched.body_limit import BodyLimit  # noqa: E402
from realtime.routing import websocket_application  # noqa: E402

application = ProtocolTypeRouter({"http": BodyLimit(http), "websocket": websocket_application()})
