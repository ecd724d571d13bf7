"""A server for 3D Slicer and OHIF: the part of MONAI Label's REST that their modules use. Without torch, but for what
predicts, which the command hands in."""
