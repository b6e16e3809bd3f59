from vla.policies.pi0.pipeline import make_pipeline
