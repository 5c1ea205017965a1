"""Pages of the door: sign in, sign out, switch tenant; and what every page needs to know of who asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import authenticate, login, logout
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.shortcuts import redirect, render
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST

from tenants import identity, limiter, signin
from tenants.identity import Identity
from tenants.limits import Refusal
from tenants.models import Membership, Tenant, User

Rest = ParamSpec("Rest")
BACKEND = "django.contrib.auth.backends.ModelBackend"
NOT_YOURS = "There is nothing of yours at this address."


@dataclass(frozen=True)
class Shell:
    """What the frame of a page shows: who asks, and which tenants may be chosen instead."""

    who: Identity
    choices: tuple[Tenant, ...]
    any_id: bool

    @property
    def feed(self) -> str:
        """The address of the live feed; who came by a trusted header is named in it."""
        named = "" if self.who.user else f"?{urlencode({'user_id': self.tenant.key})}"
        return f"/api/progress/ws{named}"

    @property
    def last_event(self) -> int:
        """Where the live feed goes on: read before the page's rows, so that nothing is missed."""
        return self.who.tenant.next_event - 1

    @property
    def tenant(self) -> Tenant:
        return self.who.tenant


def who_asks(request: HttpRequest) -> Identity:
    """By the header that a trusted proxy sets, else by session. Raises NotIdentified."""
    header = request.META.get("HTTP_X_USER_ID")
    if header is not None and settings.TRUST_USER_HEADER:
        return identity.by_user_id(header)
    return identity.of_request(request)


def for_tenant(
    view: Callable[Concatenate[HttpRequest, Identity, Rest], HttpResponseBase],
) -> Callable[Concatenate[HttpRequest, Rest], HttpResponseBase]:
    """Give the page its Identity; who is not signed in goes to the sign-in page and comes back."""

    @wraps(view)
    def page(request: HttpRequest, *args: Rest.args, **kwargs: Rest.kwargs) -> HttpResponseBase:
        try:
            who = who_asks(request)
        except identity.NoTenant as error:
            return render(request, "tenants/no_tenant.html", {"reason": str(error)}, status=403)
        except identity.NotIdentified:
            back = request.get_full_path() if request.method == "GET" else "/"
            return redirect(f"{settings.LOGIN_URL}?{urlencode({'next': back})}")
        refusal = limiter.charge(request, who.tenant.key)
        if refusal is not None:
            return too_fast(refusal)
        return view(request, who, *args, **kwargs)

    return never_cache(page)


def too_fast(refusal: Refusal) -> HttpResponse:
    """429 with Retry-After."""
    answer = HttpResponse(f"{refusal.sentence}\n", status=429, content_type="text/plain")
    answer["Retry-After"] = str(refusal.retry_after)
    return answer


def for_writer(
    view: Callable[Concatenate[HttpRequest, Identity, Rest], HttpResponseBase],
) -> Callable[Concatenate[HttpRequest, Rest], HttpResponseBase]:
    """Like for_tenant, for a POST that changes rows: viewers are told why they may not."""

    @wraps(view)
    def page(
        request: HttpRequest, who: Identity, *args: Rest.args, **kwargs: Rest.kwargs
    ) -> HttpResponseBase:
        if who.may_write:
            return view(request, who, *args, **kwargs)
        reason = (
            f"You are a viewer of {who.tenant}: ask an operator of that lab for a member's role."
        )
        return show(request, who, "403.html", {"reason": reason}, status=403)

    return require_POST(for_tenant(page))


def show(
    request: HttpRequest,
    who: Identity,
    template: str,
    context: Mapping[str, Any] | None = None,
    *,
    status: int = 200,
) -> HttpResponse:
    """The page `template` in the frame of `who`."""
    return render(request, template, {**(context or {}), "shell": shell_of(who)}, status=status)


def shell_of(who: Identity) -> Shell:
    choices = Tenant.objects.none()
    if who.user is not None:
        choices = Tenant.objects.filter(memberships__user=who.user).order_by("key")
    return Shell(who, tuple(choices), settings.TRUST_USER_HEADER and who.user is not None)


def rows_of(manager: Any, who: Identity) -> Any:
    """The rows of the tenant that asks: none for one that never wrote anything."""
    if not who.tenant.pk:
        return manager.across_tenants("a tenant that never wrote owns no rows").none()
    return manager.for_tenant(who.tenant)


def one_of(rows: Any, **named: Any) -> Any:
    """The one row that `named` finds. Raises Http404, the same for foreign as for unknown ones."""
    row = rows.filter(**named).first()
    if row is None:
        raise Http404(NOT_YOURS)
    return row


@never_cache
@sensitive_post_parameters("password")
@require_http_methods(["GET", "POST"])
def sign_in(request: HttpRequest) -> HttpResponse:
    """Sign in by the link that bin/serve prints, or by name and password."""
    if token := request.GET.get("token"):
        return _by_link(request, token)
    if request.method == "POST":
        return _by_password(request)
    if request.user.is_authenticated:
        return _onward(request)
    return _form(request)


def _by_link(request: HttpRequest, token: str) -> HttpResponse:
    user = signin.user_of(token)
    if user is None and request.user.is_authenticated:
        return redirect(settings.LOGIN_REDIRECT_URL)  # the link again, by who it signed in
    if user is None:
        return _form(
            request,
            "This sign-in link was used already or is too old. Start bin/serve again: it prints "
            "a new one.",
        )
    login(request, user, backend=BACKEND)
    return redirect(settings.LOGIN_REDIRECT_URL)


def _by_password(request: HttpRequest) -> HttpResponse:
    user = authenticate(
        request,
        username=request.POST.get("username", ""),
        password=request.POST.get("password", ""),
    )
    if not isinstance(user, User):
        return _form(request, "No account has this name and password. Check both and try again.")
    login(request, user)
    return _onward(request)


def _form(request: HttpRequest, problem: str = "") -> HttpResponse:
    context = {
        "problem": problem,
        "name": request.POST.get("username", ""),
        "next": request.POST.get("next") or request.GET.get("next", ""),
    }
    return render(request, "tenants/sign_in.html", context, status=400 if problem else 200)


def _onward(request: HttpRequest) -> HttpResponseRedirect:
    """To the page that sent the person here, if it is one of ours."""
    wanted = request.POST.get("next") or request.GET.get("next", "")
    ours = url_has_allowed_host_and_scheme(
        wanted, allowed_hosts={request.get_host()}, require_https=request.is_secure()
    )
    return HttpResponseRedirect(wanted if ours else settings.LOGIN_REDIRECT_URL)


@require_POST
def sign_out(request: HttpRequest) -> HttpResponse:
    """End the session."""
    logout(request)
    return redirect(settings.LOGOUT_REDIRECT_URL)


@require_POST
@for_tenant
def switch_tenant(request: HttpRequest, who: Identity) -> HttpResponse:
    """Act for another tenant: one's memberships, any id where the header is trusted."""
    key = request.POST.get("tenant", "").strip()
    if who.user is None:
        messages.error(request, "A proxy says who you are: the tenant can not be switched here.")
    elif _may_choose(who.user, key):
        request.session[identity.SESSION_KEY] = key
    else:
        messages.error(
            request,
            f"You can not switch to “{key[:64]}”: give 1 to 64 letters, digits, . _ : @ or -."
            if settings.TRUST_USER_HEADER
            else f"You do not belong to “{key[:64]}”: ask an operator of that lab to add you.",
        )
    return redirect(settings.LOGIN_REDIRECT_URL)


def _may_choose(user: User, key: str) -> bool:
    if settings.TRUST_USER_HEADER and identity.TENANT_KEY.fullmatch(key):
        return True
    return Membership.objects.filter(user=user, tenant__key=key).exists()
