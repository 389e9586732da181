"""Results to one self-contained page that a person looks at: a picture for every claim."""

from vae_edge.report.page import Calibration, ReportData, SampleSet, write_report

__all__ = ["Calibration", "ReportData", "SampleSet", "write_report"]
