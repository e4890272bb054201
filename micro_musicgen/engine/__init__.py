"""Playing models: from codes to clips, behind audiocraft's API."""
