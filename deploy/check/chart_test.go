package check

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

const (
	chartDir  = "../helm/murder"
	namespace = "images"
)

// valueSets are what the tests render the chart with, by name: YAML, as in a file for helm's --values.
var valueSets = map[string]string{
	"default":    `image: {repository: reg.example/murder}`,
	"no volume":  `{image: {repository: reg.example/murder, tag: v2}, seeder: {storage: {size: ""}}, containerd: {setup: false}}`,
	"pod":        `{image: {repository: reg.example/murder}, mirror: {network: pod, metricsPort: 0, port: 5000}, networkPolicy: {enabled: true}}`,
	"tls":        `{image: {repository: reg.example/murder}, tls: {seederSecret: a, mirrorSecret: b}, serviceMonitor: {enabled: true}}`,
	"everything": everything,
}

const everything = `
image: {repository: reg.example/murder, pullPolicy: Always, pullSecrets: [own]}
registries: {insecure: ["10.0.0.1:5000"], allow: ["*.corp.example"], default: reg.corp.example}
seeder:
  replicas: 3
  storage: {size: 1Ti, className: fast}
  cacheSize: 900GiB
  uploadLimit: 10Gbit
  dockerConfigSecret: reader
  eventsTokenSecret: events
  nodeSelector: {disk: nvme}
  tolerations: [{key: storage, operator: Exists}]
  affinity: {nodeAffinity: {}}
  podAnnotations: {a: b}
  extraArgs: [--log-level=debug]
mirror:
  network: pod
  cacheSize: 50GiB
  uploadLimit: 1Gbit
  downloadLimit: 100MiB
  criSocket: /run/crio/crio.sock
  engineStore: /srv/containerd/io.containerd.content.v1.content
  labels: {pool: gpu}
  podAnnotations: {a: b}
  affinity: {nodeAffinity: {}}
  extraArgs: [--scrub-rate=0]
containerd: {registries: [docker.io, "reg.corp.example:5000"], certsDir: /srv/certs.d, seLinuxOptions: {type: spc_t}}
tls: {seederSecret: a, mirrorSecret: b}
networkPolicy: {enabled: true, nodeCIDRs: [10.1.0.0/16], from: [{namespaceSelector: {matchLabels: {name: monitoring}}}]}
serviceMonitor: {enabled: true, interval: 1m, labels: {release: prometheus}}
`

// manifests is what the chart renders to, decoded.
type manifests struct {
	seeder   apps.StatefulSet
	mirror   apps.DaemonSet
	services map[string]core.Service
	policies map[string]networking.NetworkPolicy
	monitors map[string]monitoring.ServiceMonitor
	budgets  []policy.PodDisruptionBudget
	notes    string
}

// render renders the chart as `helm template` does; values are YAML.
func render(values string) (map[string]string, error) {
	chart, err := loader.LoadDir(chartDir)
	if err != nil {
		return nil, err
	}
	set := map[string]any{}
	if err := yaml.UnmarshalStrict([]byte(values), &set); err != nil {
		return nil, err
	}
	options := common.ReleaseOptions{Name: "murder", Namespace: namespace, IsInstall: true, Revision: 1}
	all, err := util.ToRenderValues(chart, set, options, nil)
	if err != nil {
		return nil, err
	}
	return engine.Render(chart, all)
}

// mustRender also decodes, by the API's own types: a field that they do not know fails the test.
func mustRender(t *testing.T, values string) *manifests {
	t.Helper()
	files, err := render(values)
	if err != nil {
		t.Fatal(err)
	}
	m := &manifests{services: map[string]core.Service{}, policies: map[string]networking.NetworkPolicy{}, monitors: map[string]monitoring.ServiceMonitor{}}
	for name, content := range files {
		if strings.HasSuffix(name, "NOTES.txt") {
			m.notes = content
			continue
		}
		for doc := range strings.SplitSeq(content, "\n---\n") {
			if err := m.add(doc); err != nil {
				t.Fatalf("%s: %v\n%s", name, err, doc)
			}
		}
	}
	return m
}

func (m *manifests) add(doc string) error {
	var head struct {
		APIVersion, Kind string
		Metadata         struct{ Name, Namespace string }
	}
	if err := yaml.Unmarshal([]byte(doc), &head); err != nil || head.Kind == "" {
		return err // nothing but comments
	}
	if head.Metadata.Namespace != namespace {
		return fmt.Errorf("its namespace is %q", head.Metadata.Namespace)
	}
	strict := func(into any) error { return decode(doc, into) }
	switch head.APIVersion + " " + head.Kind {
	case "apps/v1 StatefulSet":
		return strict(&m.seeder)
	case "apps/v1 DaemonSet":
		return strict(&m.mirror)
	case "v1 ServiceAccount":
		return strict(&core.ServiceAccount{})
	case "v1 Service":
		return decodeInto(m.services, head.Metadata.Name, strict)
	case "networking.k8s.io/v1 NetworkPolicy":
		return decodeInto(m.policies, head.Metadata.Name, strict)
	case "monitoring.coreos.com/v1 ServiceMonitor":
		return decodeInto(m.monitors, head.Metadata.Name, strict)
	case "policy/v1 PodDisruptionBudget":
		m.budgets = append(m.budgets, policy.PodDisruptionBudget{})
		return strict(&m.budgets[len(m.budgets)-1])
	}
	return fmt.Errorf("no test knows %s %s", head.APIVersion, head.Kind)
}

// decode refuses keys that are unknown, there twice, or spelled in another case, as the API server does.
func decode(doc string, into any) error {
	b, err := yaml.YAMLToJSONStrict([]byte(doc))
	if err != nil {
		return err
	}
	unknown, err := json.UnmarshalStrict(b, into)
	return errors.Join(append(unknown, err)...)
}

func decodeInto[T any](all map[string]T, name string, decode func(any) error) error {
	var one T
	err := decode(&one)
	all[name] = one
	return err
}

// eachSet runs a test for each set of values.
func eachSet(t *testing.T, test func(t *testing.T, m *manifests)) {
	for name, values := range valueSets {
		t.Run(name, func(t *testing.T) { test(t, mustRender(t, values)) })
	}
}

// pods are the pod specs by role.
func (m *manifests) pods() map[string]core.PodSpec {
	return map[string]core.PodSpec{"seeder": m.seeder.Spec.Template.Spec, "mirror": m.mirror.Spec.Template.Spec}
}

func containers(pod core.PodSpec) []core.Container {
	return slices.Concat(pod.InitContainers, pod.Containers)
}

// leadsContainerd is the mirror's sidecar that leads containerd to it, if there is one.
func leadsContainerd(pod core.PodSpec) (c core.Container, ok bool) {
	i := slices.IndexFunc(pod.InitContainers, func(c core.Container) bool { return c.Name == "containerd" })
	if i < 0 {
		return c, false
	}
	return pod.InitContainers[i], true
}

func TestLint(t *testing.T) {
	for name, values := range valueSets {
		set := map[string]any{}
		if err := yaml.Unmarshal([]byte(values), &set); err != nil {
			t.Fatal(err)
		}
		for _, m := range lint.RunAll(chartDir, set, namespace).Messages {
			if m.Severity > support.InfoSev {
				t.Errorf("%s: %v", name, m)
			}
		}
	}
}

// TestLocked looks for what a container could do beyond its work.
func TestLocked(t *testing.T) {
	eachSet(t, func(t *testing.T, m *manifests) {
		for role, pod := range m.pods() {
			if pod.HostPID || pod.HostIPC || pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
				t.Errorf("%s sees the host's processes or the cluster's API", role)
			}
			for _, c := range containers(pod) {
				s := c.SecurityContext
				switch {
				case s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem:
					t.Errorf("%s/%s: its root file system is not read-only", role, c.Name)
				case s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []core.Capability{"ALL"}) || len(s.Capabilities.Add) > 0:
					t.Errorf("%s/%s: it has capabilities", role, c.Name)
				case s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || s.Privileged != nil:
					t.Errorf("%s/%s: it may get privileges", role, c.Name)
				case s.SeccompProfile == nil || s.SeccompProfile.Type != core.SeccompProfileTypeRuntimeDefault:
					t.Errorf("%s/%s: it has no seccomp profile", role, c.Name)
				}
				if c.Resources.Limits.Memory().IsZero() || c.Resources.Requests.Cpu().IsZero() {
					t.Errorf("%s/%s: no limit of memory, or no request of CPU", role, c.Name)
				}
				daemon := c.Name == "seeder" || c.Name == "mirror"
				if daemon && runsAsRoot(pod, c) {
					t.Errorf("%s/%s: it runs as root", role, c.Name)
				}
				if !daemon && len(c.Ports) > 0 {
					t.Errorf("%s/%s: root listens", role, c.Name)
				}
			}
		}
	})
}

func runsAsRoot(pod core.PodSpec, c core.Container) bool {
	nonRoot, user := (*bool)(nil), (*int64)(nil)
	if pod.SecurityContext != nil {
		nonRoot, user = pod.SecurityContext.RunAsNonRoot, pod.SecurityContext.RunAsUser
	}
	if c.SecurityContext.RunAsUser != nil {
		nonRoot, user = c.SecurityContext.RunAsNonRoot, c.SecurityContext.RunAsUser
	}
	return nonRoot == nil || !*nonRoot || user == nil || *user == 0
}

// TestHostPaths says what of a node the pods can touch, and by which container.
func TestHostPaths(t *testing.T) {
	eachSet(t, func(t *testing.T, m *manifests) {
		for role, pod := range m.pods() {
			paths := map[string]string{}
			volumes := map[string]bool{"data": role == "seeder"} // perhaps of volumeClaimTemplates
			for _, v := range pod.Volumes {
				volumes[v.Name] = true
				if v.HostPath != nil {
					paths[v.Name] = v.HostPath.Path
				}
			}
			for _, c := range containers(pod) {
				if file := flagOf(c, "events-token-file"); file != "" && file != mountOf(c, "events")+"/token" {
					t.Errorf("%s/%s: no token is at %s", role, c.Name, file)
				}
				for _, e := range c.Env {
					if e.Name == "DOCKER_CONFIG" && e.Value != mountOf(c, "docker") {
						t.Errorf("%s/%s: no credentials are in %s", role, c.Name, e.Value)
					}
				}
				if dir := flagOf(c, "data-dir"); dir != "" && !strings.HasPrefix(dir+"/", mountOf(c, "data")+"/") {
					t.Errorf("%s/%s: its data is in %s, which nothing is mounted at", role, c.Name, dir)
				}
				for _, mount := range c.VolumeMounts {
					if !volumes[mount.Name] {
						t.Errorf("%s/%s mounts %s, which there is not", role, c.Name, mount.Name)
					}
					if mount.Name == "certs" != (c.Name == "containerd") {
						t.Errorf("%s/%s sees %s", role, c.Name, paths[mount.Name])
					}
					if engines := strings.HasPrefix(mount.Name, "engine"); engines && (c.Name != "mirror" || !mount.ReadOnly) {
						t.Errorf("%s/%s sees %s of the engine, read-only %v", role, c.Name, paths[mount.Name], mount.ReadOnly)
					}
				}
			}
			delete(paths, "engine") // only if asked for: TestEngine
			delete(paths, "engine-store")
			if role == "seeder" && len(paths) > 0 || len(paths) > 2 {
				t.Errorf("%s touches %v", role, paths)
			}
		}
	})
}

// TestSidecar: containerd is led to the mirror by an init container that stays, and so ends, and puts the node back, whenever the pod ends.
func TestSidecar(t *testing.T) {
	eachSet(t, func(t *testing.T, m *manifests) {
		pod := m.mirror.Spec.Template.Spec
		if len(pod.Containers) != 1 {
			t.Errorf("%d containers beside the mirror", len(pod.Containers)-1)
		}
		for _, c := range pod.InitContainers {
			stays := c.RestartPolicy != nil && *c.RestartPolicy == core.ContainerRestartPolicyAlways
			if holds := slices.Contains(c.Args, "--hold"); stays != holds {
				t.Errorf("%s: it stays: %v, Kubernetes is told so: %v", c.Name, holds, stays)
			}
		}
		if last := pod.InitContainers[len(pod.InitContainers)-1]; len(pod.InitContainers) > 1 && last.Name != "containerd" {
			t.Errorf("%s is made ready after containerd has been led to the mirror", last.Name)
		}
	})
}

// TestEngine: the mirror finds the engine's socket and store where its flags say, is in the group whose the socket is, and not root; and
// none of it unasked.
func TestEngine(t *testing.T) {
	hostPaths := func(pod core.PodSpec) map[string]string {
		paths := map[string]string{}
		for _, v := range pod.Volumes {
			if v.HostPath != nil {
				paths[v.Name] = v.HostPath.Path
			}
		}
		return paths
	}
	pod := mustRender(t, everything).mirror.Spec.Template.Spec
	mirror, paths := pod.Containers[0], hostPaths(pod)
	if got, want := flagOf(mirror, "load-into"), "cri="+mountOf(mirror, "engine")+"/crio.sock"; got != want || paths["engine"] != "/run/crio" {
		t.Errorf("--load-into = %s, want %s; it is mounted from %s", got, want, paths["engine"])
	}
	if got, want := flagOf(mirror, "engine-store"), mountOf(mirror, "engine-store"); got != want || paths["engine-store"] != "/srv/containerd/io.containerd.content.v1.content" {
		t.Errorf("--engine-store = %s, want %s; it is mounted from %s", got, want, paths["engine-store"])
	}
	if groups := pod.SecurityContext.SupplementalGroups; !slices.Equal(groups, []int64{0}) {
		t.Errorf("groups = %v, and the socket is root's group's", groups)
	}
	if o := mirror.SecurityContext.SELinuxOptions; o == nil || o.Type != "spc_t" {
		t.Errorf("SELinux keeps the mirror from the engine: %v", o)
	}
	for _, m := range mirror.VolumeMounts { // a copy of containers' mounts that the node has let go of would keep their disks busy
		if m.Name == "engine" && (m.MountPropagation == nil || *m.MountPropagation != core.MountPropagationHostToContainer) {
			t.Errorf("mounts propagate by %v", m.MountPropagation)
		}
	}
	pod = mustRender(t, valueSets["default"]).mirror.Spec.Template.Spec
	mirror, paths = pod.Containers[0], hostPaths(pod)
	if flagOf(mirror, "load-into")+flagOf(mirror, "engine-store")+paths["engine"]+paths["engine-store"] != "" || len(pod.SecurityContext.SupplementalGroups) > 0 {
		t.Errorf("unasked: %v %v %v", mirror.Args, paths, pod.SecurityContext.SupplementalGroups)
	}
}

// TestEveryNode: the mirror is where pulls are, before and after anything else.
func TestEveryNode(t *testing.T) {
	pod := mustRender(t, valueSets["default"]).mirror.Spec.Template.Spec
	if pod.PriorityClassName != "system-node-critical" {
		t.Errorf("priority class = %q", pod.PriorityClassName)
	}
	if want := []core.Toleration{{Operator: core.TolerationOpExists}}; !slices.Equal(pod.Tolerations, want) {
		t.Errorf("tolerations = %v", pod.Tolerations)
	}
}

// flagOf is the value of a container's flag, the last if there are several.
func flagOf(c core.Container, name string) string {
	value := ""
	for _, arg := range c.Args {
		if v, ok := strings.CutPrefix(arg, "--"+name+"="); ok {
			value = v
		}
	}
	return value
}

func portOf(t *testing.T, hostport string) int32 {
	t.Helper()
	_, port, err := net.SplitHostPort(hostport)
	if err != nil {
		t.Fatal(err)
	}
	var n int32
	fmt.Sscan(port, &n)
	return n
}

// TestPorts compares what the flags say with what Kubernetes is told.
func TestPorts(t *testing.T) {
	eachSet(t, func(t *testing.T, m *manifests) {
		for role, pod := range m.pods() {
			c := pod.Containers[0]
			declared := map[string]int32{}
			for _, p := range c.Ports {
				declared[p.Name] = p.ContainerPort
				if p.Name == "http" && role == "mirror" && (p.HostPort != p.ContainerPort || p.HostIP != "127.0.0.1") {
					t.Errorf("mirror: pulls at %s:%d of the node, want its loopback", p.HostIP, p.HostPort)
				}
				if p.Name != "http" && p.HostPort != 0 {
					t.Errorf("%s: port %s is the node's", role, p.Name)
				}
			}
			want := map[string]int32{"http": portOf(t, flagOf(c, "listen")), "bittorrent": portOf(t, flagOf(c, "peer-listen"))}
			if at := flagOf(c, "metrics-listen"); at != "" {
				want["metrics"] = portOf(t, at)
			}
			if !maps.Equal(declared, want) {
				t.Errorf("%s: ports = %v, flags say %v", role, declared, want)
			}
		}
		mirror, pod := m.mirror.Spec.Template.Spec.Containers[0], m.mirror.Spec.Template.Spec
		if loopback := strings.HasPrefix(flagOf(mirror, "listen"), "127.0.0.1:"); loopback != pod.HostNetwork {
			t.Errorf("mirror listens at %s, host network %v", flagOf(mirror, "listen"), pod.HostNetwork)
		}
		for _, p := range []*core.Probe{mirror.ReadinessProbe, mirror.LivenessProbe} {
			if (p.HTTPGet.Host == "127.0.0.1") != pod.HostNetwork {
				t.Errorf("mirror is probed at %q, host network %v", p.HTTPGet.Host, pod.HostNetwork)
			}
		}
		if c, ok := leadsContainerd(pod); ok {
			if got, want := flagOf(c, "mirror"), fmt.Sprintf("http://127.0.0.1:%d", portOf(t, flagOf(mirror, "listen"))); got != want {
				t.Errorf("containerd is led to %s, and the mirror is at %s", got, want)
			}
		}
	})
}

// TestSeederIsFound follows the mirror's --seeder to the seeder's pods.
func TestSeederIsFound(t *testing.T) {
	eachSet(t, func(t *testing.T, m *manifests) {
		mirror := m.mirror.Spec.Template.Spec.Containers[0]
		scheme := "http"
		if flagOf(mirror, "tls-cert") != "" {
			scheme = "https"
		}
		want := scheme + "://murder-seeder." + namespace + ".svc:7070"
		if got := flagOf(mirror, "seeder"); got != want {
			t.Errorf("--seeder = %s, want %s", got, want)
		}
		service := m.services["murder-seeder"]
		if service.Spec.ClusterIP != core.ClusterIPNone || service.Spec.Ports[0].Port != 7070 {
			t.Errorf("service = %+v, want a headless one with port 7070", service.Spec)
		}
		if m.seeder.Spec.ServiceName != service.Name {
			t.Errorf("serviceName = %s", m.seeder.Spec.ServiceName)
		}
		for name, s := range m.services {
			template := m.seeder.Spec.Template
			if name != "murder-seeder" {
				template = m.mirror.Spec.Template
			}
			for k, v := range s.Spec.Selector {
				if template.Labels[k] != v {
					t.Errorf("%s selects %s=%s, the pods have %q", name, k, v, template.Labels[k])
				}
			}
			for _, p := range s.Spec.Ports {
				if !slices.ContainsFunc(template.Spec.Containers[0].Ports, func(c core.ContainerPort) bool { return c.Name == p.TargetPort.StrVal }) {
					t.Errorf("%s leads to port %s, which the pods do not have", name, p.TargetPort.StrVal)
				}
			}
		}
		if pod := m.mirror.Spec.Template.Spec; pod.HostNetwork && pod.DNSPolicy != core.DNSClusterFirstWithHostNet {
			t.Errorf("a mirror on the host's network asks the cluster's names of %s", pod.DNSPolicy)
		}
		advertised := map[bool]string{true: "status.hostIP", false: "status.podIP"}[m.mirror.Spec.Template.Spec.HostNetwork]
		if got := mirror.Env[0]; got.Name != "MURDER_ADVERTISE" || got.ValueFrom.FieldRef.FieldPath != advertised {
			t.Errorf("peers are told %v, want %s", got, advertised)
		}
	})
}

func TestTLS(t *testing.T) {
	eachSet(t, func(t *testing.T, m *manifests) {
		for role, pod := range m.pods() {
			c := pod.Containers[0]
			i := slices.IndexFunc(pod.Volumes, func(v core.Volume) bool { return v.Name == "tls" && v.Secret != nil })
			if (i >= 0) != (flagOf(c, "tls-key") != "") {
				t.Errorf("%s: secret %v, flag %q", role, i >= 0, flagOf(c, "tls-key"))
			}
			for flag, key := range map[string]string{"tls-cert": "tls.crt", "tls-key": "tls.key", "tls-ca": "ca.crt"} {
				if at := flagOf(c, flag); at != "" && at != mountOf(c, "tls")+"/"+key {
					t.Errorf("%s: --%s=%s, the secret's is %s", role, flag, at, key)
				}
			}
			for _, e := range c.Env { // `murder prefetch --fleet` in the seeder's container has what the seeder has
				if flag, ok := strings.CutPrefix(e.Name, "MURDER_TLS_"); ok && e.Value != flagOf(c, "tls-"+strings.ToLower(flag)) {
					t.Errorf("%s: %s=%s, and the daemon has %s", role, e.Name, e.Value, flagOf(c, "tls-"+strings.ToLower(flag)))
				}
			}
			asked := slices.ContainsFunc(c.Env, func(e core.EnvVar) bool { return e.Name == "MURDER_SEEDER" && e.Value == "https://127.0.0.1:7070" })
			if asked != (i >= 0 && role == "seeder") {
				t.Errorf("%s: commands in its container ask by TLS: %v", role, asked)
			}
			want := core.URISchemeHTTP
			if i >= 0 && role == "seeder" {
				want = core.URISchemeHTTPS
			}
			for _, p := range []*core.Probe{c.ReadinessProbe, c.LivenessProbe} {
				if got := p.HTTPGet.Scheme; got != want && (got != "" || want != core.URISchemeHTTP) {
					t.Errorf("%s is probed by %s, want %s", role, got, want)
				}
			}
		}
	})
}

// mountOf is where a container has a volume.
func mountOf(c core.Container, volume string) string {
	for _, m := range c.VolumeMounts {
		if m.Name == volume {
			return m.MountPath
		}
	}
	return ""
}

func TestPolicies(t *testing.T) {
	m := mustRender(t, everything)
	if len(m.policies) != 2 || len(m.monitors) != 2 || len(m.budgets) != 1 {
		t.Errorf("%d policies, %d monitors, %d budgets; want 2, 2, 1", len(m.policies), len(m.monitors), len(m.budgets))
	}
	for name, p := range m.policies {
		for _, rule := range p.Spec.Ingress {
			if len(rule.From) == 0 || len(rule.Ports) == 0 {
				t.Errorf("%s lets everybody in, or everywhere", name)
			}
		}
	}
	if m := mustRender(t, valueSets["default"]); len(m.policies)+len(m.monitors)+len(m.budgets) != 0 {
		t.Errorf("unasked: %v %v %v", m.policies, m.monitors, m.budgets)
	}
}

// TestPoliciesLetIn: the chart's policies let in what docs/OPERATIONS.md lists under "Ports", and nobody else.
func TestPoliciesLetIn(t *testing.T) {
	const node, stranger, watcher = "a node", "a pod of the cluster", "Prometheus"
	type flow struct{ from, to, port string }
	all := map[flow]bool{}
	for _, from := range []string{"mirror", "seeder", node, watcher, stranger} {
		for _, port := range []string{"http", "bittorrent", "metrics"} {
			all[flow{from, "mirror", port}] = port == "bittorrent" && (from == "mirror" || from == "seeder") || port == "metrics" && from == watcher
			all[flow{from, "seeder", port}] = port == "http" && (from == "mirror" || from == "seeder" || from == node || from == watcher) ||
				port == "bittorrent" && (from == "mirror" || from == "seeder" || from == node)
		}
	}
	m := mustRender(t, everything)
	is := func(peer networking.NetworkPolicyPeer, who string) bool {
		switch {
		case peer.IPBlock != nil:
			return who == node && peer.IPBlock.CIDR == "10.1.0.0/16"
		case peer.NamespaceSelector != nil:
			return who == watcher && peer.NamespaceSelector.MatchLabels["name"] == "monitoring"
		}
		labels := map[string]map[string]string{"mirror": m.mirror.Spec.Template.Labels, "seeder": m.seeder.Spec.Template.Labels}[who]
		return selects(peer.PodSelector.MatchLabels, labels)
	}
	for f, want := range all {
		got := false
		for _, p := range m.policies {
			pods := map[string]map[string]string{"mirror": m.mirror.Spec.Template.Labels, "seeder": m.seeder.Spec.Template.Labels}[f.to]
			if !selects(p.Spec.PodSelector.MatchLabels, pods) {
				continue
			}
			for _, rule := range p.Spec.Ingress {
				port := slices.ContainsFunc(rule.Ports, func(p networking.NetworkPolicyPort) bool { return p.Port.StrVal == f.port })
				got = got || port && slices.ContainsFunc(rule.From, func(peer networking.NetworkPolicyPeer) bool { return is(peer, f.from) })
			}
		}
		if got != want {
			t.Errorf("%s to the %s's port %s is let in: %v, want %v", f.from, f.to, f.port, got, want)
		}
	}
}

// selects tells whether a selector, which must not be empty here, selects pods with these labels.
func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return len(selector) > 0
}

// TestBadValues wants each mistake refused, by a message that names it.
func TestBadValues(t *testing.T) {
	for values, want := range map[string]string{
		`{}`:                                   "image.repository",
		`{image: {repository: r}, mirorr: {}}`: "mirorr",
		`{image: {repository: r}, mirror: {port: 0}}`:                                                                                "port",
		`{image: {repository: r}, mirror: {network: none}}`:                                                                          "network",
		`{image: {repository: r}, mirror: {cacheSize: plenty}}`:                                                                      "cacheSize",
		`{image: {repository: r}, mirror: {extraArgs: [log-level]}}`:                                                                 "extraArgs",
		`{image: {repository: r}, mirror: {criSocket: "unix:///run/x.sock"}}`:                                                        "criSocket",
		`{image: {repository: r}, mirror: {engineStore: content}}`:                                                                   "engineStore",
		`{image: {repository: r}, seeder: {replicas: -1}}`:                                                                           "replicas",
		`{image: {repository: r}, containerd: {certsDir: certs.d}}`:                                                                  "certsDir",
		`{image: {repository: r}, registries: {insecure: ["http://r"]}}`:                                                             "insecure",
		`{image: {repository: r}, tls: {seederSecret: a}}`:                                                                           "set both or neither",
		`{image: {repository: r}, networkPolicy: {enabled: true}}`:                                                                   "networkPolicy.nodeCIDRs",
		`{image: {repository: r}, networkPolicy: {enabled: true, nodeCIDRs: [nodes]}}`:                                               "nodeCIDRs",
		`{image: {repository: r}, mirror: {metricsPort: 0}, serviceMonitor: {enabled: true}}`:                                        "mirror.metricsPort",
		`{image: {repository: r}, mirror: {priorityClassName: 3}}`:                                                                   "priorityClassName",
		`{image: {repository: r}, mirror: {labels: {pool: "gpu #1"}}}`:                                                               "pool",
		`{image: {repository: r}, mirror: {labels: {"a b": c}}}`:                                                                     "a b",
		`{image: {repository: r}, registries: {allow: ["reg #1"]}}`:                                                                  "allow",
		`{image: {repository: r}, registries: {default: "https://r"}}`:                                                               "default",
		`{image: {repository: r}, mirror: {peerPort: 7080}}`:                                                                         "must differ",
		`{image: {repository: r}, mirror: {port: 7082}}`:                                                                             "must differ",
		`{image: {repository: r}, mirror: {updateStrategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}}}`: "maxSurge",
	} {
		if _, err := render(values); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error about %s", values, err, want)
		}
	}
}

// TestWordsStayWhole: what YAML could take for its own in a value reaches the daemon as it was written.
func TestWordsStayWhole(t *testing.T) {
	values := `{image: {repository: r}, mirror: {labels: {pool: "on", "a/b": ""}}, containerd: {registries: ["[::1]:5000"]}, registries: {allow: ["*.corp.example:*"]}}`
	pod := mustRender(t, values).mirror.Spec.Template.Spec
	for _, want := range []string{"--label=pool=on", "--label=a/b=", "--allow-registry=*.corp.example:*"} {
		if args := pod.Containers[0].Args; !slices.Contains(args, want) {
			t.Errorf("the mirror is not told %s: %q", want, args)
		}
	}
	if c, _ := leadsContainerd(pod); !slices.Contains(c.Args, "--registry=[::1]:5000") {
		t.Errorf("containerd is led by %q", c.Args)
	}
}

// TestValuesAreInSchema: values.yaml shows all that may be set.
func TestValuesAreInSchema(t *testing.T) {
	var schema struct{ Properties map[string]any }
	var values map[string]any
	for file, into := range map[string]any{"values.schema.json": &schema, "values.yaml": &values} {
		b, err := os.ReadFile(filepath.Join(chartDir, file))
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(b, into); err != nil {
			t.Fatal(err)
		}
	}
	delete(schema.Properties, "global") // Helm's own
	compareKeys(t, "", schema.Properties, values)
}

func compareKeys(t *testing.T, path string, properties, values map[string]any) {
	t.Helper()
	if got, want := slices.Sorted(maps.Keys(values)), slices.Sorted(maps.Keys(properties)); !slices.Equal(got, want) {
		t.Errorf("%s: values.yaml has %v, the schema %v", path, got, want)
	}
	for key, property := range properties {
		below, _ := property.(map[string]any)["properties"].(map[string]any)
		if value, ok := values[key].(map[string]any); ok && below != nil {
			compareKeys(t, path+"."+key, below, value)
		}
	}
}

// TestNotes: what a person is told names what there is.
func TestNotes(t *testing.T) {
	m := mustRender(t, valueSets["default"])
	for _, want := range []string{"statefulset/" + m.seeder.Name, "daemonset/" + m.mirror.Name, "-n " + namespace} {
		if !strings.Contains(m.notes, want) {
			t.Errorf("notes do not name %s:\n%s", want, m.notes)
		}
	}
	if bytes.Contains([]byte(m.notes), []byte("<no value>")) {
		t.Errorf("notes have a hole:\n%s", m.notes)
	}
}
