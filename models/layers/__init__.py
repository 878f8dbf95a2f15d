"""What denoiser families share: embeddings of time, class and place, and attention."""
