"""Per-example gradients for any torch model; imports torch and numpy, nothing else.

In reading order: engine, observation, tap, rules, forms, observers, positions, replay, verifying; what is done with
gradients: values, crediting, folding, sketch, store, reading, influence, curvature, clusters; how they are proved:
testing, cases, tiny.
"""

from ghostgrad import layers as layers  # registers the rules
from ghostgrad.engine import TRAINABLE, GradientEngine
from ghostgrad.forms import Dense, ExampleGradient, OuterProduct, Rows, Transposed
from ghostgrad.observers import Dots, Gram, Kept, Norms, Observer, Sketches, WeightedSum
from ghostgrad.rules import RULES, LayerIO, NotFinite, Rule, RuleRegistry, UnsupportedLayer
from ghostgrad.sketch import PROFILES, Sketcher, SketchOptions

__all__ = [
    "PROFILES",
    "RULES",
    "TRAINABLE",
    "Dense",
    "Dots",
    "ExampleGradient",
    "GradientEngine",
    "Gram",
    "Kept",
    "LayerIO",
    "Norms",
    "NotFinite",
    "Observer",
    "OuterProduct",
    "Rows",
    "Rule",
    "RuleRegistry",
    "SketchOptions",
    "Sketcher",
    "Sketches",
    "Transposed",
    "UnsupportedLayer",
    "WeightedSum",
]
