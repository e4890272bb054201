"""The whole main job on one page: sounds, codec, language model, clips, numbers."""
