"""grape: post-training of language models as a tracked pipeline, after "Understanding Reinforcement Learning for Model
Training, and future directions with GRAPE" (R. Patel, arXiv 2509.04501).

Reading order: types (what travels), data (what people bring), maths (the equations), algorithms (one file = one section of the
paper), models and sampling (what a policy says), reward (what it is told; sandbox runs the programs it judges), training (the
one loop; assemble.py joins an algorithm with what it needs), stages (what dvc.yaml runs), evaluation and report (what came of
it), pipeline and track (how it is run and kept), export (how a model leaves), commands (what the command line calls).

    paper            name in code       shape        unit
    x                Prompt             P
    y = (y_1..y_T)   Response           B = P x G    tokens, EOS included
    m_t              mask               (B, T)       bool
    log pi_theta     logp               (B, T)       nats
    log pi_old       logp_old           (B, T)       nats, constant
    log pi_ref       logp_ref           (B, T)       nats, constant
    rho_t            ratio              (B, T)       1
    s_ik, c_ik       score, confidence  (B, K)       [0, 1] for rubric items
    w_k              weight             (B, K)       relative
    R(x, y)          reward             (B,)         weighted mean of the scores
    A_t              advantage          (B, T)       units of the reward, or its std
    beta             beta               1            reward units per nat
    eps_lo, eps_hi   clip_low, clip_high 1           of the ratio

One word means one thing, in code and in prose; no two classes share a name.

    policy           the language model that is trained; *old*: as it sampled; *reference*: the SFT model it must stay near
    value model      says what a prefix is worth (PPO); ValuedPolicy is a policy with its value model
    reward model     scores a whole response, learned from pairs
    critic           a model that judges an item of a rubric; a *verifier* is a program that does; both give a Verdict or Verdicts
    panel            several judges as one critic; *agreement*: how alike they, or the draws of one, are
    item, rubric     one criterion; the criteria of a category
    score            what a judge gives an item; *reward*: the weighted mean of a response's scores; *gold*: the truth, to evaluate
    rollouts         what the policy sampled, as credit reads it; *batch*: what a loss reads; *round*: one turn of the loop
    knob             a parameter of an algorithm (AlgorithmParams); Params is all of params.yaml, a Section the part of a stage
    need             what must be there for an algorithm besides the policy
    stage, run       a stage of dvc.yaml; what happens when it is executed, kept as a receipt and in MLflow
    card             a file with the hash of what DVC cannot compare itself
"""
