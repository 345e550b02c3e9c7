"""Models: black boxes, SoftCAM and the Explainer-Classifier on the same backbones."""

from lib.models.backbones import ARCHITECTURES, blackbox
from lib.models.explainer_classifier import Explainer, ExplainerClassifier, explainer_classifier
from lib.models.reference import load_reference_checkpoint, load_reference_state
from lib.models.softcam import SoftCAM, SoftCAMOutput, softcam, to_softcam
