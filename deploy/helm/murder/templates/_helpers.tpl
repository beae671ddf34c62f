{{- define "murder.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* Of (list . "role"): what finds a role's pods. */}}
{{- define "murder.selector" -}}
{{- $top := index . 0 -}}
app.kubernetes.io/name: {{ $top.Chart.Name }}
app.kubernetes.io/instance: {{ $top.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "murder.labels" -}}
{{- $top := index . 0 -}}
{{ include "murder.selector" . }}
app.kubernetes.io/version: {{ $top.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $top.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $top.Chart.Name $top.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "murder.image" -}}
{{- required "image.repository is where you have pushed murder's image (`make image`)" .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "murder.scheme" -}}
{{- if ne (empty .Values.tls.seederSecret) (empty .Values.tls.mirrorSecret) }}{{ fail "tls.seederSecret and tls.mirrorSecret: a fleet is with TLS or without; set both or neither" }}{{ end -}}
{{- if .Values.tls.seederSecret }}https{{ else }}http{{ end }}
{{- end }}

{{/* Of a container that only holds its data and its ports. */}}
{{- define "murder.locked" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Flags that both daemons have. */}}
{{- define "murder.args" -}}
- {{ printf "--default-registry=%s" .Values.registries.default | quote }}
{{- range .Values.registries.insecure }}
- {{ printf "--insecure-registry=%s" . | quote }}
{{- end }}
{{- range .Values.registries.allow }}
- {{ printf "--allow-registry=%s" . | quote }}
{{- end }}
{{- if eq (include "murder.scheme" .) "https" }}
- --tls-cert=/etc/murder/tls/tls.crt
- --tls-key=/etc/murder/tls/tls.key
- --tls-ca=/etc/murder/tls/ca.crt
{{- end }}
- --log-format=json
{{- end }}

{{- define "murder.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}
