"""Pictures classified by exported networks: onnxruntime and OpenCV, no torch."""
