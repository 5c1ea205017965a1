"""Every setting, read from the environment here and nowhere else.

docs/settings.md lists the variables. A wrong value stops the process with a sentence.
"""

from __future__ import annotations

import sys
from pathlib import Path

import environ

from labsched import environment
from labsched.environment import bounded_float, bounded_int

BASE_DIR = Path(__file__).resolve().parent.parent
env = environ.Env()

# --- folders -----------------------------------------------------------------------------
LABSCHED_DATA = Path(env("LABSCHED_DATA", default=str(BASE_DIR / "var"))).resolve()
LABSCHED_CACHE = Path(env("LABSCHED_CACHE", default=str(BASE_DIR / "var" / "cache"))).resolve()
SLIDE_ROOT = LABSCHED_DATA / "slides"  # readable by every tenant; operators add others

# --- who may ask -------------------------------------------------------------------------
DEBUG = env.bool("DJANGO_DEBUG", default=False)
SECRET_KEY = environment.secret_key(env, LABSCHED_DATA, debug=DEBUG)
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["127.0.0.1", "localhost", "[::1]"])
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])
TRUST_USER_HEADER = env.bool("TRUST_USER_HEADER", default=DEBUG)
SIGN_IN_LINK_MAX_AGE_S = bounded_int(env, "SIGN_IN_LINK_MAX_AGE_S", 86_400, low=60)

# --- scheduling (DESIGN §4) --------------------------------------------------------------
MAX_WORKERS = bounded_int(env, "MAX_WORKERS", 4, low=1, high=10_000)
CPU_WORKERS = bounded_int(env, "CPU_WORKERS", MAX_WORKERS, low=1)
GPU_WORKERS = environment.optional_int(env, "GPU_WORKERS", low=0)
MAX_ACTIVE_USERS = bounded_int(env, "MAX_ACTIVE_USERS", 3, low=1, high=10_000)
ACTIVE_USER_QUANTUM_S = bounded_float(env, "ACTIVE_USER_QUANTUM_S", 600, low=0)
LEASE_S = bounded_float(env, "LEASE_S", 30, low=1)
STALL_S = bounded_float(env, "STALL_S", 120, low=1)
RETRY_BACKOFF_S = bounded_float(env, "RETRY_BACKOFF_S", 2, low=0)
RETRY_BACKOFF_MAX_S = 300.0
MAX_ATTEMPTS = bounded_int(env, "MAX_ATTEMPTS", 3, low=1, high=100)
MAX_PENDING_JOBS = bounded_int(env, "MAX_PENDING_JOBS", 100_000, low=1)
SWEEP_S = bounded_float(env, "SWEEP_S", 1, low=0.05, high=2)
WORKER_TTL_S = bounded_float(env, "WORKER_TTL_S", 15, low=2)
WITHDRAW_S = bounded_float(env, "WITHDRAW_S", 30, low=1)
CANCEL_GRACE_S = bounded_float(env, "CANCEL_GRACE_S", 10, low=0.5)
SPREAD_SHARDS = bounded_int(env, "SPREAD_SHARDS", 4, low=0, high=1000)
MAX_FAILED_TILES = bounded_float(env, "MAX_FAILED_TILES", 0.01, low=0, high=1)
BLOCK_RETENTION_DAYS = bounded_float(env, "BLOCK_RETENTION_DAYS", 7, low=0, high=3650)

# --- bounds (R11) ------------------------------------------------------------------------
RATE_LIMIT_PER_S = bounded_float(env, "RATE_LIMIT_PER_S", 200, low=0, high=100_000)
RATE_LIMIT_ADDRESS_PER_S = bounded_float(env, "RATE_LIMIT_ADDRESS_PER_S", 1000, low=0, high=100_000)
TRUSTED_PROXIES = environment.optional_networks(env, "TRUSTED_PROXIES")

# --- job types ---------------------------------------------------------------------------
LABSCHED_ENABLE_PROBE_JOBS = env.bool("LABSCHED_ENABLE_PROBE_JOBS", default=False)
LABSCHED_PROBE_LOG = env("LABSCHED_PROBE_LOG", default="")
INSTANSEG_MODEL = env("INSTANSEG_MODEL", default="")
INSTANSEG_BIOIMAGEIO_PATH = env("INSTANSEG_BIOIMAGEIO_PATH", default="")  # InstanSeg's own

# --- metrics -----------------------------------------------------------------------------
METRICS_TENANT_LABELS = bounded_int(env, "METRICS_TENANT_LABELS", 50, low=0)
METRICS_TOKEN = env("METRICS_TOKEN", default="")

# --- Django ------------------------------------------------------------------------------
INSTALLED_APPS = [
    # first, so that its runserver serves websockets; elsewhere it would only cost 26 MB a process
    *(["daphne"] if "runserver" in sys.argv else []),
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "django_rq",
    "django_prometheus",
    "tenants",
    "jobs",
    "workflows",
    "realtime",
    "labsched",
]
MIDDLEWARE = [
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "labsched.middleware.ContentSecurityPolicy",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_prometheus.middleware.PrometheusAfterMiddleware",
]
ROOT_URLCONF = "labsched.urls"
ASGI_APPLICATION = "labsched.asgi.application"
APPEND_SLASH = False  # the API answers with and without a slash; pages redirect by themselves
AUTH_USER_MODEL = "tenants.User"
LOGIN_URL = "/sign-in/"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "/sign-in/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-us"
X_FRAME_OPTIONS = "SAMEORIGIN"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("MinimumLengthValidator", "CommonPasswordValidator")
]

# --- database ----------------------------------------------------------------------------
DATABASES = {"default": environment.database(env, LABSCHED_DATA)}
DATABASE_POOLED = env.bool("DATABASE_POOLED", default=False)

# --- Redis: RQ's wire, the channel layer, wake-ups ---------------------------------------
REDIS_URL = environment.redis_url(env, LABSCHED_DATA)
REDIS_EMBEDDED = not env("REDIS_URL", default="")  # `manage.py dev` starts one of its own
QUEUES = ("cpu", "gpu")
RQ_QUEUES = {
    name: {"URL": REDIS_URL, "DEFAULT_TIMEOUT": -1, "SERIALIZER": "rq.serializers.JSONSerializer"}
    for name in QUEUES
}
CHANNEL_LAYERS = {
    "default": {
        # the pub/sub layer keeps its sockets when Redis restarts; the core layer drops them
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [REDIS_URL], "prefix": "labsched"},
    }
}

# --- files -------------------------------------------------------------------------------
STATIC_URL = "/static/"
STATIC_ROOT = LABSCHED_DATA / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]
MEDIA_ROOT = LABSCHED_DATA  # artifact names begin with "results/"
STORAGES = environment.storages(env, LABSCHED_DATA, debug=DEBUG)
SLIDES_BUCKET = environment.slides_bucket(env)
SLIDE_CACHE_GB = bounded_float(env, "SLIDE_CACHE_GB", 100, low=0)

# --- REST --------------------------------------------------------------------------------
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "tenants.authentication.BearerAuthentication",
        "tenants.authentication.UserHeaderAuthentication",
        "tenants.authentication.TenantSessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["tenants.permissions.HasTenant"],
    "DEFAULT_PARSER_CLASSES": ["labsched.rest.BoundedJSONParser"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "labsched.rest.AlwaysJSON",
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "DEFAULT_PAGINATION_CLASS": "workflows.paging.NewestFirst",
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
    "PAGE_SIZE": 50,
    "EXCEPTION_HANDLER": "labsched.rest.answer_error",
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "labsched",
    "DESCRIPTION": "A branch-aware, multi-tenant scheduler for whole-slide image inference.",
    "VERSION": "0.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "ENUM_NAME_OVERRIDES": {
        "JobStateEnum": "jobs.serializers.STATES",
        "ReasonEnum": "jobs.serializers.REASONS",
        "WorkflowStateEnum": "workflows.models.Workflow.State",
    },
    "PREPROCESSING_HOOKS": ["labsched.rest.public_endpoints"],
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SERVE_AUTHENTICATION": [],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s", "datefmt": "%H:%M:%S"}
    },
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": env("LOG_LEVEL", default="INFO")},
    "loggers": {"django.request": {"level": "ERROR"}, "rq.worker": {"level": "WARNING"}},
}
