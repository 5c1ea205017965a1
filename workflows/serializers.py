"""The shapes of bodies and answers about workflows, for the schema; workflows/shapes.py makes them."""

from __future__ import annotations

from rest_framework import serializers

from jobs.serializers import JobSerializer
from workflows.models import Workflow


class JobInSerializer(serializers.Serializer[object]):
    """One job of a submission."""

    job_id = serializers.RegexField(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    job_type = serializers.CharField(max_length=50, help_text="tissue_mask or cell_segmentation.")
    image_path = serializers.CharField(
        max_length=1000, required=False, help_text="Relative to a slide root. Or give slide_id."
    )
    slide_id = serializers.UUIDField(required=False)
    branch = serializers.CharField(
        max_length=100, required=False, help_text="Jobs of one branch run one at a time, in order."
    )
    depends_on = serializers.ListField(
        child=serializers.CharField(), required=False, help_text="Keys of jobs of this workflow."
    )
    params = serializers.DictField(required=False)
    priority = serializers.IntegerField(required=False, min_value=-100, max_value=100)
    reuse = serializers.BooleanField(required=False)


class WorkflowInSerializer(serializers.Serializer[object]):
    """A submission; without jobs an empty workflow to add to."""

    name = serializers.CharField(max_length=200)
    jobs = JobInSerializer(many=True, required=False)
    on_failure = serializers.ChoiceField(choices=Workflow.OnFailure.choices, required=False)
    reuse = serializers.BooleanField(required=False)


class AddedJobSerializer(JobInSerializer):
    """One more job for a workflow that exists."""

    workflow_id = serializers.UUIDField()
    branch_id = serializers.CharField(max_length=100, required=False, help_text="As branch.")
    job_id = serializers.RegexField(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", required=False)


class WorkflowStateSerializer(serializers.Serializer[object]):
    """A workflow without its lists."""

    id = serializers.UUIDField()
    name = serializers.CharField()
    state = serializers.ChoiceField(choices=Workflow.State.choices)
    progress = serializers.FloatField(min_value=0, max_value=1)
    on_failure = serializers.ChoiceField(choices=Workflow.OnFailure.choices)
    created_at = serializers.DateTimeField()
    finished_at = serializers.DateTimeField(allow_null=True)


class WorkflowSerializer(WorkflowStateSerializer):
    """A workflow with its jobs in submitted order and its edges."""

    jobs = JobSerializer(many=True)
    edges = serializers.ListField(
        child=serializers.ListField(child=serializers.CharField(), min_length=2, max_length=2)
    )


class WorkersSerializer(serializers.Serializer[object]):
    """Worker processes of all queues."""

    total = serializers.IntegerField()
    busy = serializers.IntegerField()


class BranchDepthSerializer(serializers.Serializer[object]):
    """How many jobs of a branch wait."""

    branch = serializers.CharField()
    pending = serializers.IntegerField()


class MinuteSerializer(serializers.Serializer[object]):
    """The jobs that ended in one minute, and their mean seconds from promotion to end."""

    minute = serializers.DateTimeField()
    jobs = serializers.IntegerField()
    seconds = serializers.FloatField()


class DashboardSerializer(serializers.Serializer[object]):
    """Numbers of a dashboard: branches and jobs of the asking tenant, totals of all."""

    active_users = serializers.IntegerField()
    max_active_users = serializers.IntegerField()
    workers = WorkersSerializer()
    jobs = serializers.DictField(child=serializers.IntegerField(), help_text="By state.")
    queue_depth = BranchDepthSerializer(many=True)
    latency_per_minute = MinuteSerializer(many=True)
