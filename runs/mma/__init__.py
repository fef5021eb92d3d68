"""Max-margin adversarial training (Ding et al. 2020) beside the methods that it is compared with, on one network."""
