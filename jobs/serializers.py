"""The shapes of answers about jobs and slides, for the schema; jobs/shapes.py makes them."""

from __future__ import annotations

from rest_framework import serializers

from jobs.states import PUBLIC_STATES, Reason

STATES = [(state, state) for state in PUBLIC_STATES]
REASONS = [(reason.value, reason.value) for reason in Reason]


class ErrorSerializer(serializers.Serializer[object]):
    """What every refusal says; field errors are {field: [sentence]} instead."""

    detail = serializers.CharField()


class ArtifactSerializer(serializers.Serializer[object]):
    """A stored result file."""

    name = serializers.CharField()
    kind = serializers.CharField()
    size = serializers.IntegerField(help_text="Bytes.")
    sha256 = serializers.CharField()
    url = serializers.CharField()


class PhaseSerializer(serializers.Serializer[object]):
    """A phase that a job went through."""

    name = serializers.CharField()
    seconds = serializers.FloatField()


class JobStateSerializer(serializers.Serializer[object]):
    """A job without its lists, as events carry it."""

    id = serializers.UUIDField()
    job_id = serializers.CharField(help_text="The client's key, unique in its workflow.")
    workflow_id = serializers.UUIDField()
    branch = serializers.CharField()
    job_type = serializers.CharField()
    queue = serializers.CharField()
    state = serializers.ChoiceField(choices=STATES)
    reason = serializers.ChoiceField(choices=REASONS)
    progress = serializers.FloatField(min_value=0, max_value=1)
    phase = serializers.CharField()
    tiles_done = serializers.IntegerField()
    tiles_total = serializers.IntegerField()
    attempt = serializers.IntegerField()
    max_attempts = serializers.IntegerField()
    params = serializers.DictField()
    priority = serializers.IntegerField()
    error = serializers.CharField(help_text="What went wrong, in a sentence.")
    summary = serializers.DictField(help_text="Counts of the result.")
    created_at = serializers.DateTimeField()
    queued_at = serializers.DateTimeField(allow_null=True)
    started_at = serializers.DateTimeField(allow_null=True)
    finished_at = serializers.DateTimeField(allow_null=True)


class JobSerializer(JobStateSerializer):
    """A job with its lists."""

    depends_on = serializers.ListField(child=serializers.CharField())
    artifacts = ArtifactSerializer(many=True)


class WholeJobSerializer(JobSerializer):
    """A job with its lists, its phases and its slide."""

    phases = PhaseSerializer(many=True)
    slide_id = serializers.UUIDField(allow_null=True)
    image_path = serializers.CharField(allow_null=True)


class GateSerializer(serializers.Serializer[object]):
    """A gate that a waiting job has to pass; the first that holds is the reason."""

    gate = serializers.ChoiceField(choices=REASONS)
    holds = serializers.BooleanField()
    value = serializers.CharField(help_text="What it is now: `2 of 3 user slots taken`.")
    detail = serializers.CharField()


class WhySerializer(serializers.Serializer[object]):
    """Which rule holds a waiting job."""

    reason = serializers.ChoiceField(choices=REASONS)
    detail = serializers.CharField()
    blocking = serializers.ListField(child=serializers.JSONField())
    position = serializers.IntegerField(allow_null=True)
    estimated_start = serializers.DateTimeField(
        allow_null=True, help_text="Null where nobody can know: nothing is made up."
    )
    estimated_range = serializers.ListField(
        child=serializers.DateTimeField(allow_null=True),
        allow_null=True,
        help_text="Early and late: eight of ten starts fall between. Late is null when unknown.",
    )
    gates = GateSerializer(many=True)


class CellSerializer(serializers.Serializer[object]):
    """One cell in level-0 pixels; the polygon is [y, x] in the document, [x, y] elsewhere."""

    cell_id = serializers.IntegerField()
    label_id = serializers.IntegerField()
    polygon = serializers.ListField(child=serializers.ListField(child=serializers.FloatField()))
    area = serializers.FloatField()
    centroid = serializers.ListField(child=serializers.FloatField())


class SeenCellSerializer(CellSerializer):
    """A cell in a window. While the job runs its cells have no numbers yet."""

    cell_id = serializers.IntegerField(allow_null=True)
    label_id = serializers.IntegerField(allow_null=True)


class ResultsSerializer(serializers.Serializer[object]):
    """The published result document, whole or one page of it."""

    cells = CellSerializer(many=True)
    total_cells = serializers.IntegerField()
    tiles_processed = serializers.IntegerField()
    method = serializers.CharField()
    coordinate_order = serializers.DictField(child=serializers.CharField())
    page = serializers.IntegerField(required=False)
    pages = serializers.IntegerField(required=False)
    next = serializers.CharField(required=False, allow_null=True)
    previous = serializers.CharField(required=False, allow_null=True)


class CellWindowSerializer(serializers.Serializer[object]):
    """The cells that touch a window."""

    cells = SeenCellSerializer(many=True)
    total = serializers.IntegerField(help_text="Cells of the whole job.")
    truncated = serializers.BooleanField(help_text="More cells touch the window than fit.")
    provisional = serializers.BooleanField(help_text="The job still runs: more may come.")


class SlideSerializer(serializers.Serializer[object]):
    """A slide that the tenant may use; facts are null until it was opened."""

    id = serializers.UUIDField()
    name = serializers.CharField()
    image_path = serializers.CharField()
    root = serializers.CharField()  # type: ignore[assignment]
    size = serializers.IntegerField(help_text="Bytes.")
    vendor = serializers.CharField(allow_null=True)
    width = serializers.IntegerField(allow_null=True, help_text="Level-0 pixels.")
    height = serializers.IntegerField(allow_null=True, help_text="Level-0 pixels.")
    levels = serializers.IntegerField(allow_null=True)
    mpp_x = serializers.FloatField(allow_null=True, help_text="µm per level-0 pixel.")
    mpp_y = serializers.FloatField(allow_null=True, help_text="µm per level-0 pixel.")
    mpp_source = serializers.CharField(allow_null=True)
    bounds = serializers.ListField(
        child=serializers.IntegerField(),
        allow_null=True,
        help_text="x, y, width, height of the scanned part; the origin of the tiles.",
    )
    error = serializers.CharField(help_text="Why it can not be opened, in a sentence.")
    dzi = serializers.CharField()
    thumbnail = serializers.CharField()


class LayerSerializer(serializers.Serializer[object]):
    """The cells of a job, as a viewer fetches them."""

    count = serializers.IntegerField()
    window = serializers.CharField(help_text="Add ?bbox=x0,y0,x1,y1 in level-0 pixels.")
    document = serializers.CharField(allow_null=True)
    geojson = serializers.CharField(allow_null=True)


class VisualizationSerializer(serializers.Serializer[object]):
    """What a viewer needs to show a job over its slide."""

    job = JobStateSerializer()
    slide = SlideSerializer(allow_null=True)
    bounds = serializers.ListField(
        child=serializers.FloatField(),
        allow_null=True,
        help_text="x0, y0, x1, y1 round all cells, level-0 pixels.",
    )
    provisional = serializers.BooleanField(
        help_text="The job still runs: bounds, counts and cells are those so far."
    )
    counts = serializers.DictField()
    cells = LayerSerializer(allow_null=True)
    mask = serializers.CharField(allow_null=True, help_text="PNG, 255 = tissue.")
    outline = serializers.CharField(allow_null=True, help_text="GeoJSON of the tissue.")
    overlay_tiles = serializers.CharField(allow_null=True)
    chunks = serializers.CharField(allow_null=True)
