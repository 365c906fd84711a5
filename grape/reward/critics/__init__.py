"""Critics: who answers a rubric item's question about an answer. One protocol (`question.Critic`), three backends: `trained` (the
critic stage's model) and `local` (any causal language model), both read by `logits`, and `openai` (an OpenAI-compatible server).
`judge.load_critic` picks.
"""
