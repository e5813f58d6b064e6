"""Three rooms: ``counted`` (no clock), ``timed`` (pytest-benchmark), ``written`` (claims, pages); ``gpu`` runs all."""
