"""Critics: who answers a rubric item's question about an answer. One protocol (`base.Critic`), three backends: `trained` (the
critic stage's model), `local` (any causal language model) and `server` (an OpenAI-compatible server). `settings.load_critic` picks.
"""
