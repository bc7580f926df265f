"""Running a lattice without training: onnxruntime, OpenCV, numpy; no torch."""
