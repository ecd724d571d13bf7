"""Batched augmentation on the device of the batch: parameters are sampled (numpy), then applied (torch).

Shapes: B batch, C channel, K class, D H W (= Z Y X). No function changes its input; where nothing is to be
done, the input itself is returned.
"""
