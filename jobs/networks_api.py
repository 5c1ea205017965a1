"""GET /api/models: what a cell segmentation may name as its model."""

from __future__ import annotations

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from jobs import networks


class ModelSerializer(serializers.Serializer[dict[str, object]]):
    """A model: published, or registered by an operator."""

    name = serializers.CharField()
    version = serializers.CharField(allow_null=True, help_text="null: a published model.")
    outputs = serializers.ListField(child=serializers.CharField(), help_text="nuclei, cells.")
    mpp = serializers.FloatField(help_text="µm per pixel at which it works.")
    channels = serializers.IntegerField(
        allow_null=True, help_text="That it takes; null: any number."
    )


class ModelsView(APIView):
    """The models of this server; every tenant may use all of them."""

    @extend_schema(operation_id="models_list", responses={200: ModelSerializer(many=True)})
    def get(self, request: Request) -> Response:
        """Models that `params.model` of a cell segmentation may name."""
        return Response(networks.listed())
