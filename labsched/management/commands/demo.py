"""`manage.py demo`: what bin/demo runs after set-up."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path

from django.conf import settings
from django.core.management import BaseCommand
from rich.console import Console

from labsched.bootstrap.assets import SAMPLE_SLIDE
from labsched.bootstrap.console import Trouble, complain
from labsched.demo import USER, Demo, Finding, bring_slide
from labsched.embedded_redis import free_port
from labsched.management.commands.dev import choose_port
from tenants import signin
from tenants.models import Membership, Tenant, User


class Command(BaseCommand):
    help = "Run a two-branch workflow on a slide and check what it found."
    requires_system_checks = ()  # the stack it starts runs them

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--slide", type=Path, help="your slide instead of the sample")
        parser.add_argument("--model", type=Path, help="your InstanSeg TorchScript file")
        parser.add_argument(
            "--serve", action="store_true", help="stay up afterwards, for a browser"
        )
        parser.add_argument("--port", type=int, help="the web port (default: any free one)")

    def handle(
        self, *, slide: Path | None, model: Path | None, serve: bool, port: int | None, **_: object
    ) -> None:
        console = Console(highlight=False, markup=False, soft_wrap=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the stack in order, too
        try:
            run(console, slide=slide, model=model, serve=serve, port=port)
        except Trouble as trouble:
            complain(trouble)
            sys.exit(1)
        except KeyboardInterrupt:
            console.print("\nStopped.")
            sys.exit(130)


def run(
    console: Console, *, slide: Path | None, model: Path | None, serve: bool, port: int | None
) -> None:
    """The whole demo. Raises Trouble when anything on the way is not as it must be."""
    if model is not None:
        check_model(model)
    image_path = bring_slide(slide)
    chosen = free_port() if port is None else choose_port(port)
    demo = Demo(console, port=chosen, model=None if model is None else model.resolve())
    began = time.monotonic()
    with demo.running_stack() as process:
        console.print(f"Submitting tissue → cells on {image_path} through the REST API.")
        workflow = demo.watch(demo.submit(image_path), process)
        finding = demo.collect(workflow, settings.SLIDE_ROOT / image_path)
        report(console, finding, seconds=time.monotonic() - began)
        judge(finding, sample=image_path == SAMPLE_SLIDE)
        if serve:
            stay(console, demo.url, finding, process)
    if not serve:
        console.print("To look at it in a browser: bin/demo --serve")


def check_model(model: Path) -> None:
    """Raise Trouble unless `model` can be loaded: no worker of a stack would get warm with it."""
    if not model.is_file():
        raise Trouble(f"There is no model file {model}.", "Check the path that --model names.")
    from jobs.imaging import network  # loads torch, for those who bring a model
    from jobs.imaging.contract import BadInput

    try:
        network.load(model)
    except BadInput as error:
        wrong, _, _ = str(error).partition(": give ")  # its advice is for a server's settings
        raise Trouble(
            f"{wrong}.",
            "Give --model an InstanSeg TorchScript file, or leave it out: the published one is used.",
        ) from error


def report(console: Console, finding: Finding, *, seconds: float) -> None:
    """Name what was found and every file."""
    verdict = finding.verdict
    console.print(
        f"\n{verdict.cells:,} nuclei in {finding.tissue_mm2:.2f} mm² of tissue, {seconds:.0f} s in all.",
        style="bold",
    )
    console.print(
        f"Checked: {verdict.on_glass} cells on glass, {verdict.duplicates} pairs of cells with "
        f"IoU over 0.5, {verdict.centroid_outside} centroids outside their outline."
    )
    console.print(f"\nThe results are in {finding.folder}")
    for file in finding.files:
        console.print(f"  {file}")
    console.print("Drag cells.geojson.gz onto the open slide in QuPath to see every outline.")


def judge(finding: Finding, *, sample: bool) -> None:
    """Raise Trouble when the result breaks a rule, or the sample slide has no cells."""
    faults = finding.verdict.faults()
    if sample and not finding.verdict.cells:
        faults.append("The sample slide has no nuclei.")
    if faults:
        raise Trouble(
            f"The result does not hold: {' '.join(faults)}",
            f"Report it with {finding.folder}/manifest.json.",
        )


def demo_person() -> User:
    """An account without a password that belongs to the demo's tenant, so that a link shows its rows."""
    user, made = User.objects.get_or_create(username=USER)
    if made:
        user.set_unusable_password()
        user.save(update_fields=["password"])
    tenant = Tenant.objects.get(key=USER)
    Membership.objects.get_or_create(tenant=tenant, user=user)
    return user


def stay(console: Console, url: str, finding: Finding, process: subprocess.Popen[bytes]) -> None:
    """Say where to look, and wait for Ctrl-C."""
    cells = next(job for job in finding.workflow["jobs"] if job["job_id"] == "cells")
    link = signin.link(demo_person())
    console.print(f"\n1. Sign in (works once): {url}{link}")
    console.print(f"2. See the cells:        {url}/jobs/{cells['id']}/viewer/")
    console.print("Ctrl-C stops everything.")
    process.wait()
    raise Trouble(
        "The stack ended by itself.", f"Read {settings.LABSCHED_DATA / 'log' / 'demo.log'}."
    )
