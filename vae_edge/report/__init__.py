"""Results to one self-contained page that a person looks at: a picture for every claim."""

from vae_edge.report.page import Calibration, Content, SampleSet, write_report

__all__ = ["Calibration", "Content", "SampleSet", "write_report"]
