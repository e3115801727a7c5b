"""Guidance: scores made of scores, and of classifiers."""

from scoresde.guidance.classifier import (
    ClassifierScore,
    NoisyClassifier,
    classification_loss,
    classifier_guidance,
)
from scoresde.guidance.classifier_free_guidance import classifier_free_guidance
from scoresde.guidance.mixture import Mixture
from scoresde.guidance.product import GuidanceInterval, Product, autoguidance, tempered

__all__ = [
    "ClassifierScore",
    "GuidanceInterval",
    "Mixture",
    "NoisyClassifier",
    "Product",
    "autoguidance",
    "classification_loss",
    "classifier_free_guidance",
    "classifier_guidance",
    "tempered",
]
