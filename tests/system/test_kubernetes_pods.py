"""deploy/kubernetes: pods are locked down, and what their manifest says fits the server."""

import re

import pytest
import yaml

from deploy.kubernetes.manifests import Document
from server.scopes import OPEN, SCOPES_OF
from server.settings import ENV_PREFIX, Settings
from tests.system.built_image import IMAGE
from tests.system.machine import ROOT
from tests.system.pod_container import one
from tests.system.rendered import FOR_OTHERS

KINDS = ("startup", "readiness", "liveness")
CLOSE_S = 5
"""What the server may need to close its connections and threads, after the drain."""

pytestmark = pytest.mark.system


def test_pods_have_no_rights(pod_spec: Document, container_spec: Document):
    """No root, no capability and no way to one, nothing to write to but what is mounted."""
    for name in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        assert not pod_spec.get(name)
    context = pod_spec["securityContext"]
    assert context["runAsNonRoot"] is True
    user = re.search(r"^USER (\d+)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert user is not None and context["runAsUser"] == int(user[1]) >= 10_000
    assert context["runAsGroup"] == context["fsGroup"] == context["runAsUser"]
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    own = container_spec["securityContext"]
    assert own == {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not any("hostPort" in port for port in container_spec["ports"])
    kinds = {kind for volume in pod_spec["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"emptyDir", "secret"}
    assert all(v["emptyDir"]["sizeLimit"] for v in pod_spec["volumes"] if "emptyDir" in v)


def test_the_namespace_holds_pods_to_it(objects: list[Document]):
    """Pod Security admission enforces the strictest profile, and everything lies in there."""
    namespace = one(objects, "Namespace")["metadata"]
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [each["metadata"] for each in objects if each["kind"] != "Namespace"]
    assert {each["namespace"] for each in others} == {namespace["name"]}


def test_pods_cannot_speak_to_the_cluster(objects: list[Document], pod_spec: Document):
    """No token is mounted, the account has no roles, and no variables of services are injected."""
    account = one(objects, "ServiceAccount")
    assert (
        account["automountServiceAccountToken"] is pod_spec["automountServiceAccountToken"] is False
    )
    assert pod_spec["serviceAccountName"] == account["metadata"]["name"]
    assert pod_spec["enableServiceLinks"] is False
    assert not [each for each in objects if "Role" in each["kind"]]


def test_the_network_is_closed(objects: list[Document], container_spec: Document):
    """In: the one port, from named places. Out: names and nothing else."""
    policy = one(objects, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    (way_in,) = policy["ingress"]
    assert [port["port"] for port in way_in["ports"]] == [container_spec["ports"][0]["name"]]
    assert way_in["from"] and all(each != {} for each in way_in["from"])
    named = [each for each in way_in["from"] if "namespaceSelector" in each]
    label = "kubernetes.io/metadata.name"
    places = {each["namespaceSelector"]["matchLabels"][label] for each in named}
    assert places == {"ingress-nginx", "monitoring"}
    (way_out,) = policy["egress"]
    assert {(port["port"], port["protocol"]) for port in way_out["ports"]} == {
        (53, "UDP"),
        (53, "TCP"),
    }
    (resolver,) = way_out["to"]
    assert resolver["podSelector"]["matchLabels"] == {"k8s-app": "kube-dns"}


def test_no_secret_is_in_the_repository(objects: list[Document]):
    """Secrets are only named; whoever deploys makes them."""
    assert not [each for each in objects if each["kind"] == "Secret"]
    (settings,) = [each for each in objects if each["kind"] == "ConfigMap"]
    assert not {f"{ENV_PREFIX}API_KEYS", "HF_TOKEN"} & settings["data"].keys()


@pytest.mark.parametrize("name", ["base", *FOR_OTHERS])
def test_others_need_a_key(rendered: dict[str, list[Document]], name: str):
    """The key file lies in a mounted Secret that must be there, readable by the server alone."""
    pod = one(rendered[name], "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    variables = {each["name"]: each.get("value") for each in container["env"]}
    (volume,) = [each for each in pod["volumes"] if "secret" in each]
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == volume["name"]]
    assert variables["TOCOM_API_KEYS_FILE"].startswith(mount["mountPath"] + "/")
    assert mount["readOnly"] is True and "subPath" not in mount  # or it would never be renewed
    assert volume["secret"]["defaultMode"] == 0o440
    assert "optional" not in volume["secret"]
    settings = one(rendered[name], "ConfigMap")["data"]
    assert "TOCOM_ALLOW_ANONYMOUS" not in settings | variables


def test_only_the_local_overlay_is_open(rendered: dict[str, list[Document]]):
    """It says that this is meant, and has neither Secret nor what needs other programs."""
    local = rendered["local"]
    assert one(local, "ConfigMap")["data"]["TOCOM_ALLOW_ANONYMOUS"] == "true"
    assert "tocom-api-keys" not in yaml.safe_dump(local)
    kinds = {each["kind"] for each in local}
    assert not kinds & {"ServiceMonitor", "PrometheusRule", "HorizontalPodAutoscaler"}


def test_probes_mean_what_they_say(container_spec: Document):
    """Start-up and readiness ask whether it serves, liveness only whether it answers at all."""
    paths = {kind: container_spec[f"{kind}Probe"]["httpGet"] for kind in KINDS}
    assert {kind: get["path"] for kind, get in paths.items()} == {
        "startup": "/readyz",
        "readiness": "/readyz",
        "liveness": "/healthz",
    }
    for get in paths.values():
        assert SCOPES_OF[get["path"]]["GET"] == OPEN  # the kubelet has no key
        assert get["port"] == container_spec["ports"][0]["name"]
    assert container_spec["ports"][0]["containerPort"] == 8000


def test_probes_leave_time(objects: list[Document], container_spec: Document):
    """Minutes for a start, a minute of silence before a restart, and readiness reacts sooner."""
    patience = {
        kind: container_spec[f"{kind}Probe"]["periodSeconds"]
        * container_spec[f"{kind}Probe"]["failureThreshold"]
        for kind in KINDS
    }
    assert patience["readiness"] < patience["liveness"] < patience["startup"]
    assert patience["liveness"] >= 60 and patience["startup"] >= 300
    assert one(objects, "Deployment")["spec"]["progressDeadlineSeconds"] > patience["startup"]
    for kind in KINDS:
        assert container_spec[f"{kind}Probe"]["timeoutSeconds"] >= 5


def test_the_grace_period_fits_the_drain(objects: list[Document], container_spec: Document):
    """preStop, the server's drain and its end all happen before the kubelet kills the pod."""
    pod = one(objects, "Deployment")["spec"]["template"]["spec"]
    program, seconds = container_spec["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep" and float(seconds) >= 5
    drain_s = float(one(objects, "ConfigMap")["data"]["TOCOM_DRAIN_TIMEOUT_S"])
    assert pod["terminationGracePeriodSeconds"] >= float(seconds) + drain_s + CLOSE_S


def test_a_roll_out_costs_no_capacity(objects: list[Document]):
    """A new pod is ready before an old one goes, and the number of pods is the autoscaler's."""
    spec = one(objects, "Deployment")["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert "replicas" not in spec
    assert one(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_selectors_find_the_pods(objects: list[Document]):
    """Whatever selects pods selects these."""
    template = one(objects, "Deployment")["spec"]["template"]
    labels = template["metadata"]["labels"]
    spread = template["spec"]["topologySpreadConstraints"]
    selectors = [
        one(objects, "Deployment")["spec"]["selector"]["matchLabels"],
        one(objects, "Service")["spec"]["selector"],
        one(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(each["labelSelector"]["matchLabels"] for each in spread),
    ]
    assert [each["topologyKey"].split("/")[1] for each in spread] == ["zone", "hostname"]
    for selector in selectors:
        assert selector and selector.items() <= labels.items()
    assert one(objects, "Service")["spec"]["ports"][0]["targetPort"] == "http"


def test_settings_are_settings(objects: list[Document], container_spec: Document):
    """Each variable is one of the server's, with a value that it takes; or one of NVIDIA's."""
    data = one(objects, "ConfigMap")["data"]
    fields = {
        name.removeprefix(ENV_PREFIX).lower(): value
        for name, value in data.items()
        if name != "NVIDIA_DRIVER_CAPABILITIES"
    }
    settings = Settings.model_validate(fields)
    assert (
        settings.host == "0.0.0.0" and settings.port == container_spec["ports"][0]["containerPort"]
    )
    for variable in container_spec["env"]:
        assert variable["name"].removeprefix(ENV_PREFIX).lower() in Settings.model_fields


def test_resources_are_asked_for(pod_spec: Document, container_spec: Document):
    """All have requests and limits, and the model's threads are as many as the cores it gets."""
    resources = container_spec["resources"]
    assert {"cpu", "memory", "ephemeral-storage"} <= resources["requests"].keys()
    assert resources["requests"].keys() == resources["limits"].keys()
    for name in ("TOCOM_THREADS", "TOCOM_DECODE_WORKERS"):
        (source,) = [each["valueFrom"] for each in container_spec["env"] if each["name"] == name]
        assert source == {"resourceFieldRef": {"resource": "limits.cpu"}}
    assert resources["limits"]["cpu"].isdigit()


@pytest.mark.parametrize("name", FOR_OTHERS)
def test_replicas_get_what_they_were_measured_with(rendered: dict[str, list[Document]], name: str):
    """Processors and memory are guaranteed: what the server learns of its speed stays true."""
    pod = one(rendered[name], "Deployment")["spec"]["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    for kind in ("cpu", "memory"):
        assert resources["requests"][kind] == resources["limits"][kind]


def test_the_gpu_overlay_gets_a_gpu(rendered: dict[str, list[Document]]):
    """One device, nodes that have one, their taint tolerated, and no falling back to the CPU."""
    pod = one(rendered["gpu"], "Deployment")["spec"]["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "1"
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert pod["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    assert one(rendered["gpu"], "ConfigMap")["data"]["TOCOM_DEVICE"] == "cuda"
    for name in ("base", "cpu", "local"):
        assert "nvidia.com" not in yaml.safe_dump(rendered[name])


def test_images_are_of_this_version(rendered: dict[str, list[Document]]):
    """The image is compose's; the GPU's carries a tag of its own."""
    tags = {
        name: one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"]
        for name, objects in rendered.items()
    }
    assert tags == {"base": IMAGE, "cpu": IMAGE, "local": IMAGE, "gpu": f"{IMAGE}-cuda"}
