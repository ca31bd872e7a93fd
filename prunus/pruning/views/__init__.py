"""Views of models for methods that examine the inputs of layers."""

from prunus.pruning.views.views_of_layers import LayerView, layer_view, why_no_layer_inputs

__all__ = ["LayerView", "layer_view", "why_no_layer_inputs"]
