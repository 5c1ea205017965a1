"""The application that the web server runs: HTTP and websockets."""

from __future__ import annotations

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "labsched.settings")
http = get_asgi_application()  # first: it loads the apps that the imports below need

from channels.routing import ProtocolTypeRouter  # noqa: E402
from websockets import http11  # noqa: E402

from labsched.body_limit import BodyLimit  # noqa: E402
from labsched.ratelimit import RateLimit  # noqa: E402
from realtime.routing import websocket_application  # noqa: E402

# Above this, uvicorn leaves a websocket's handshake unanswered for ever instead of refusing it.
# Ours refuses a long query by itself, with its reason.
http11.MAX_LINE_LENGTH = 64 * 1024

application = RateLimit(
    ProtocolTypeRouter({"http": BodyLimit(http), "websocket": websocket_application()})
)
