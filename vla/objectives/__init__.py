"""Objectives and how to sample from them: flow matching, and ODE solvers; torch only."""
