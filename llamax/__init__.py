"""What the stage scripts share: formats, language table, prompts, checkpoint layout and runtime set-up."""
