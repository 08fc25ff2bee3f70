"""A reward server as people write it today: FastAPI around transformers' text-classification pipeline.

    python benchmarks/fastapi_pipeline.py MODEL

`POST /score {"texts": [...]}` answers `{"rewards": [...]}`: the raw logits, in batches of 16 as the texts come. FastAPI
runs the endpoint in its pool of threads; a lock lets one request at a time into the pipeline, since forward passes that
run at once on the same cores only slow each other down. uvicorn logs the address, with
a free port, once the server listens.
"""

import sys
import threading

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline


class Texts(BaseModel):
    """The body of a request."""

    texts: list[str]


def application(path):
    classify = pipeline("text-classification", model=path, function_to_apply="none", device="cpu")
    lock = threading.Lock()
    app = FastAPI()

    @app.post("/score")
    def score(body: Texts):
        with lock:
            outputs = classify(body.texts, batch_size=16, add_special_tokens=False)
        return {"rewards": [output["score"] for output in outputs]}

    return app


def main():
    uvicorn.run(application(sys.argv[1]), host="127.0.0.1", port=0, access_log=False)


if __name__ == "__main__":
    main()
