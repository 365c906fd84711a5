"""grape: post-training of language models as a tracked pipeline, after "Understanding Reinforcement Learning for Model
Training, and future directions with GRAPE" (R. Patel, arXiv 2509.04501).

Reading order: types (what travels), maths (the equations), algorithms (one file = one section of the paper), models and
sampling (what a policy says), reward (what it is told), training (the one loop), evaluation (what came of it), stages (what
dvc.yaml runs), pipeline and track (how it is run and kept).

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
"""
