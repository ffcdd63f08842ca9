"""Networks to export: checkpoints of a ResNet, ONNX files, and programs of torch.export."""
