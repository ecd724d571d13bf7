"""From a dataset folder to training batches: check, fingerprint, plan, preparation, sampling."""
