"""How is the machine? Processors, memory, the GPU, and what is served."""

from typing import Any

from deploy.grafana.panels import Panel, Query, name_panel, time_panel
from deploy.grafana.queries import HERE, WINDOW

TITLE = "How is the machine?"


def row() -> list[Any]:
    """Return the builders of the panels, in their order."""
    panels: list[Any] = []
    cpu = f"rate(process_cpu_seconds_total{{{HERE}}}{WINDOW})"
    own_cores = f"on (job, instance) tocom_usable_cpus{{{HERE}}}"
    processor = Panel(
        "Processors in use",
        "Share of the cores that the server may use; of the time in which each device had a batch "
        "of ours to compute; of the time in which each GPU computed, for anybody.",
        "percentunit",
        (
            Query(f"avg({cpu} / {own_cores})", "cores"),
            Query(
                f"avg by (device) (rate(tocom_device_busy_seconds_total{{{HERE}}}{WINDOW}))",
                "device {{device}} has a batch",
            ),
            Query(f"avg by (device) (tocom_gpu_utilization_ratio{{{HERE}}})", "GPU {{device}}"),
        ),
    )
    panels.append(time_panel(processor, most=1))
    memory = Panel(
        "Memory",
        "Resident memory of the server. It should be flat after the first minutes.",
        "bytes",
        (Query(f"process_resident_memory_bytes{{{HERE}}}", "resident {{instance}}"),),
    )
    panels.append(time_panel(memory))
    gpu = Panel(
        "GPU memory",
        "Taken by anybody, reserved by the server for tensors, and there at all. Empty on a CPU.",
        "bytes",
        (
            Query(f"sum(tocom_gpu_memory_used_bytes{{{HERE}}})", "taken"),
            Query(f"sum(tocom_gpu_memory_reserved_bytes{{{HERE}}})", "reserved"),
            Query(f"sum(tocom_gpu_memory_bytes{{{HERE}}})", "there"),
        ),
    )
    panels.append(time_panel(gpu, dashed=("there",)))
    served = Panel(
        "What is served",
        "Model, device and type of each instance; the bank, if one is loaded.",
        "short",
        (
            Query(
                f"max by (name, device, dtype) (tocom_model_info{{{HERE}}})",
                "{{name}} on {{device}}, {{dtype}}",
            ),
            Query(
                f"max by (num_groups, rank) (tocom_bank_info{{{HERE}}})",
                "bank: {{num_groups}} groups of rank {{rank}}",
            ),
            Query(f"max by (version) (tocom_build_info{{{HERE}}})", "version {{version}}"),
        ),
        width=24,
    )
    panels.append(name_panel(served))
    return panels
