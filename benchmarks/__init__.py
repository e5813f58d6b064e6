"""Three rooms: ``counted`` (no clock), ``timed`` (pytest-benchmark), ``written`` (claims, pages); ``gpu`` runs all."""

# Where ResNet-50 takes attention, at 224² and batch 64.
SITES = {
    "stem": (64, 64, 112, 112),
    "layer1": (64, 256, 56, 56),
    "layer2": (64, 512, 28, 28),
    "layer3": (64, 1024, 14, 14),
    "layer4": (64, 2048, 7, 7),
}
