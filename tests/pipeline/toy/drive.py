"""Run the toy project as `grape run pipeline` runs grape's own, but without its parameters and without MLflow."""

import sys
from pathlib import Path

from flows.server import PrefectEngine
from grape import pipeline
from grape.errors import GrapeError
from grape.pipeline.schedule import Threads
from grape.pipeline.screen import Screen
from grape.project import Project


class Untracked(pipeline.Hooks):
    """The toy's params.yaml is not grape's, and its runs are nobody's business."""

    def check(self, params):
        if "broken" in params.read_text():
            raise GrapeError("broken is no parameter", where="params.yaml:1")

    def edit(self, params, assignments):
        for assignment in assignments:
            old, new = assignment.split("=>")
            params.write_text(params.read_text().replace(old, new))

    def refuse(self, project): ...

    def open(self, project, nonce, plan, name):
        return "parent"

    def link(self, project, parent, stage): ...

    def close(self, project, parent, status, summary): ...

    def after_idle(self, project): ...


if __name__ == "__main__":
    engine = PrefectEngine() if "--engine=prefect" in sys.argv else Threads()
    try:
        result = pipeline.run(
            Project.find(Path.cwd()), pipeline.Request(wait="--no-wait" not in sys.argv, workers=2), engine, Screen(), Untracked()
        )
    except GrapeError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(result.exit_code)
