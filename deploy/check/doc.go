// Package check holds the tests of what is in deploy/ beside the code: the Helm chart is rendered and put to the real binary, the dashboard
// and the alerts to the metrics that the code exports. It is a module of its own, so that Helm and the Kubernetes API types stay out of murder's.
package check
