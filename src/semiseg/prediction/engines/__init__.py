"""What computes the logits of tiles: torch, OpenVINO or ONNX Runtime."""
