"""Serving: one process that answers the wire dialects of RL frameworks and rerankers with raw rewards.

A request passes through these files: `http_protocol` and `guards` bound it, `json_body` reads it, a module of
`dialects` turns it into a `ScoringRequest`, `served_model` renders and tokenises it, `scheduler` runs its sequences in
steps that share prefixes with other requests, and the dialect writes the answer. `application` joins these files, and
`server` runs the application.
"""
