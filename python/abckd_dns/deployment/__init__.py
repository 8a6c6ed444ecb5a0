"""Networks for devices: ONNX models, in int8 too, and a C program that runs them."""
