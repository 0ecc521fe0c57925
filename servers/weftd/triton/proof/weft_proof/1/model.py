"""Says back what it was sent: with numpy 2 the server's Python stub reads zeros, and no call fails."""

from typing import Any

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        return [
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor(
                        f"{name}_BACK", pb_utils.get_input_tensor_by_name(request, name).as_numpy()
                    )
                    for name in ("TEXT", "NUMBER")
                ]
            )
            for request in requests
        ]
