"""From a folder of audio to batches: manifests, the train/valid split, crops of audio, and the token store."""
