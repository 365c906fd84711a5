"""Critics: who answers a rubric item's question about an answer. One protocol (`verdict.Critic`), three backends: the
critic stage's model and any causal language model, both in `logits`, and an OpenAI-compatible server, in `openai`.
`judge.load_critic` picks.
"""
