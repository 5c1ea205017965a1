"""Models for operators: added with a file that is looked at first, then only switched on and off."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponseRedirect

from jobs import networks
from jobs.models import SegmentationModel
from tenants.models import User
from tenants.readonly import ReadOnlyAdmin


class NewModel(forms.ModelForm):
    """A name, a version and the files; kept when a child process could load and run the model."""

    file = forms.FileField(
        help_text="InstanSeg's TorchScript file, instanseg.pt. It is loaded and compared with its own "
        "code, which takes up to a minute. Above 60 MB: manage.py register_model."
    )
    description = forms.FileField(
        required=False,
        help_text="The rdf.yaml beside it: says of a model with one output whether that is cells.",
    )

    class Meta:
        model = SegmentationModel
        fields = ["name", "version"]

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if self.errors:
            return cleaned
        try:
            networks.check_name(cleaned["name"], cleaned["version"])
            with tempfile.TemporaryDirectory() as folder:
                self.facts = networks.look(self.written(Path(folder)))
        except networks.Refused as refused:
            raise forms.ValidationError(str(refused)) from refused
        return cleaned

    def written(self, folder: Path) -> Path:
        """The files as InstanSeg exports them, in `folder`."""
        for field, name in (("description", networks.DESCRIPTION), ("file", networks.FILE)):
            if (upload := self.cleaned_data.get(field)) is not None:
                upload.seek(0)
                with (folder / name).open("wb") as sink:
                    shutil.copyfileobj(upload, sink)
        return folder / networks.FILE


@admin.register(SegmentationModel)
class SegmentationModelAdmin(ReadOnlyAdmin):
    """InstanSeg models that every tenant may name."""

    list_display = ["__str__", "enabled", "outputs", "pixel_size", "channels", "added_by", "sha256"]
    list_select_related = ["added_by"]
    list_filter = ["enabled"]
    search_fields = ["name", "sha256"]
    ordering = ["name", "-created_at"]
    actions = ["enable", "disable"]

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.is_active and request.user.is_superuser)

    def get_form(
        self, request: HttpRequest, obj: Any = None, change: bool = False, **options: Any
    ) -> Any:
        if obj is None:
            options["form"] = NewModel
        return super().get_form(request, obj, change, **options)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        if obj is None:
            return ["name", "version", "file", "description"]
        return [field.name for field in SegmentationModel._meta.fields if field.name != "id"]

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        user = request.user if isinstance(request.user, User) else None
        with tempfile.TemporaryDirectory() as folder:
            source = form.written(Path(folder))
            made = networks.keep(obj.name, obj.version, source, form.facts, user=user)
        obj.__dict__.update(made.__dict__)

    def add_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().add_view(request, *args, **kwargs)
        except networks.Refused as refused:  # while its file was looked at somebody was faster
            messages.error(request, str(refused))
            return HttpResponseRedirect(request.path)

    # every tenant names them: switched by those who may add one, and nobody edits a row
    @admin.action(description="Enable: jobs may name it", permissions=["add"])
    def enable(self, request: HttpRequest, rows: Any) -> None:
        self._switch(request, rows, True)

    @admin.action(description="Disable: no new job may name it any more", permissions=["add"])
    def disable(self, request: HttpRequest, rows: Any) -> None:
        self._switch(request, rows, False)

    def _switch(self, request: HttpRequest, rows: Any, enabled: bool) -> None:
        word = "enabled" if enabled else "disabled"
        for row in rows:
            row.enabled = enabled
            row.save(update_fields=["enabled"])
            self.log_change(request, row, word)
            messages.success(request, f"{row}: {word}.")
