"""The numerics of SafePatching on tensors: derive, score, mask, merge, generate, judge."""
