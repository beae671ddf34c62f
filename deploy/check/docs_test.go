package check

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/strvals"
	core "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// TestClusterCommands: what the documents say to helm and kubectl fits the chart: the values are taken, and the objects are there.
func TestClusterCommands(t *testing.T) {
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range regexp.MustCompile(`(?m)^(helm|kubectl) .*$`).FindAllString(string(b), -1) {
			seen++
			words := strings.Fields(line)
			if words[0] == "helm" {
				checkHelm(t, line, words[1:])
			} else {
				checkKubectl(t, line, words[1:])
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d commands were found", seen)
	}
}

func checkHelm(t *testing.T, line string, words []string) {
	t.Helper()
	set := map[string]any{}
	for i, w := range words {
		if w == "--set" {
			if err := strvals.ParseInto(words[i+1], set); err != nil {
				t.Errorf("%s: %v", line, err)
			}
		}
	}
	if !strings.Contains(line, " --namespace murder") || words[1] != "murder" {
		t.Errorf("%s: not the release murder in the namespace murder", line)
	}
	if words[0] == "uninstall" {
		return
	}
	if words[2] != "deploy/helm/murder" || words[0] != "install" && words[0] != "upgrade" {
		t.Errorf("%s: that is not how the chart is installed", line)
	}
	values, err := yaml.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := render(string(values)); err != nil {
		t.Errorf("%s: %v", line, err)
	}
}

var objectName = regexp.MustCompile(`\b(statefulset|daemonset)[/ ]([a-z-]+)`)

func checkKubectl(t *testing.T, line string, words []string) {
	t.Helper()
	m := mustRender(t, valueSets["default"])
	objects := map[string]core.PodSpec{"statefulset/" + m.seeder.Name: m.pods()["seeder"], "daemonset/" + m.mirror.Name: m.pods()["mirror"]}
	switch strings.Join(words[:2], " ") {
	case "create namespace", "label namespace":
		if words[2] != "murder" {
			t.Errorf("%s: not the namespace murder", line)
		}
		return
	case "-n murder":
	default:
		t.Errorf("%s: not in the namespace murder", line)
	}
	if strings.HasPrefix(line, "kubectl -n murder create secret generic ") {
		for _, key := range []string{"tls.crt", "tls.key", "ca.crt"} {
			if !strings.Contains(line, " --from-file="+key+"=") {
				t.Errorf("%s: the chart wants the key %s", line, key)
			}
		}
		return
	}
	object := objectName.FindStringSubmatch(line)
	if object == nil {
		t.Errorf("%s: no test knows this", line)
		return
	}
	pod, ok := objects[object[1]+"/"+object[2]]
	if !ok {
		t.Errorf("%s: the chart has no %s %s", line, object[1], object[2])
	}
	if i := slices.Index(words, "-c"); i > 0 && !slices.ContainsFunc(containers(pod), func(c core.Container) bool { return c.Name == words[i+1] }) {
		t.Errorf("%s: there is no container %s", line, words[i+1])
	}
	if _, command, ok := strings.Cut(line, " -- /murder "); ok {
		runMurder(t, strings.Fields(command)[0], "--help") // cmd/murder looks at the flags of each line
	}
}
