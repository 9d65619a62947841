{{- define "kubenetmon-agent.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "kubenetmon-agent.fullname" -}}
{{- $name := include "kubenetmon-agent.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "kubenetmon-agent.selector" -}}
app.kubernetes.io/name: {{ include "kubenetmon-agent.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "kubenetmon-agent.labels" -}}
{{ include "kubenetmon-agent.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "kubenetmon-agent.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "kubenetmon-agent.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "kubenetmon-agent.tls" -}}
{{- if or .Values.secure .Values.tls.enabled .Values.tls.clientCertificate }}true{{ end }}
{{- end }}

{{- define "kubenetmon-agent.mutual" -}}
{{- if or .Values.secure .Values.tls.clientCertificate }}true{{ end }}
{{- end }}

{{- define "kubenetmon-agent.tokens" -}}
{{- if or .Values.secure .Values.tokens.enabled }}true{{ end }}
{{- end }}

{{/* A surge beside unavailable pods is refused by Kubernetes; the original's values ask for the latter alone. */}}
{{- define "kubenetmon-agent.updateStrategy" -}}
type: {{ .Values.updateStrategy.type }}
{{- with .Values.updateStrategy.rollingUpdate }}
{{- if eq $.Values.updateStrategy.type "RollingUpdate" }}
rollingUpdate:
  maxUnavailable: {{ .maxUnavailable }}
  {{- if and .maxSurge (has (toString .maxUnavailable) (list "0" "0%")) }}
  maxSurge: {{ .maxSurge }}
  {{- end }}
{{- end }}
{{- end }}
{{- end }}
