"""A server whose model hangs or dies at the first request; arguments: the folder of a model, and hang or die."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

from plaudit import RewardModel
from plaudit.serving.application import create_application
from plaudit.serving.scoring_service import ScoringService
from plaudit.serving.served_model import ServedModel
from plaudit.serving.server import listen, run
from plaudit.serving.server_limits import ServerLimits

if __name__ == "__main__":
    folder, way = sys.argv[1:]
    service = ScoringService(ServerLimits())
    model = RewardModel.from_pretrained(folder)
    served = ServedModel("tiny", model, pool=ThreadPoolExecutor(2), on_step=service.record_step, hung_after=0.5)

    def hang(_sequences):
        time.sleep(60)

    def die(_sequences):
        raise SystemExit("an exception that nobody expects")

    model.engine.score_columns = hang if way == "hang" else die
    service.serve([served])
    application = create_application(service)
    sys.exit(run(application, service, listen("127.0.0.1", 0), on_ready=lambda url: print(url, flush=True)))
