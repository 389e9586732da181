"""Results to one self-contained page that a person looks at: a picture for every claim."""

from vae_edge.report.content import Calibration, Content, SampleSet
from vae_edge.report.page import write_report

__all__ = ["Calibration", "Content", "SampleSet", "write_report"]
