{{- define "kubenetmon-server.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "kubenetmon-server.fullname" -}}
{{- $name := include "kubenetmon-server.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "kubenetmon-server.selector" -}}
app.kubernetes.io/name: {{ include "kubenetmon-server.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "kubenetmon-server.labels" -}}
{{ include "kubenetmon-server.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "kubenetmon-server.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "kubenetmon-server.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "kubenetmon-server.tls" -}}
{{- if or .Values.secure .Values.tls.enabled .Values.tls.requireClientCertificate }}true{{ end }}
{{- end }}

{{- define "kubenetmon-server.mutual" -}}
{{- if or .Values.secure .Values.tls.requireClientCertificate }}true{{ end }}
{{- end }}

{{- define "kubenetmon-server.tokens" -}}
{{- if or .Values.secure .Values.tokens.required }}true{{ end }}
{{- end }}

{{- define "kubenetmon-server.hasFiles" -}}
{{- if or .Values.files .Values.filesFrom }}true{{ end }}
{{- end }}

{{/* What containers of the pod read: the configuration, credentials and files. */}}
{{- define "kubenetmon-server.volumeMounts" -}}
- name: config
  mountPath: /etc/kubenetmon-server/config.yaml
  subPath: config.yaml
  readOnly: true
- name: clickhouse-credentials
  mountPath: /etc/clickhouse
  readOnly: true
{{- if include "kubenetmon-server.hasFiles" . }}
- name: files
  mountPath: /etc/kubenetmon-server/files
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "kubenetmon-server.config" -}}
environment: {{ required "environment is required: --set environment=production" .Values.environment | quote }}
cloud: {{ required "cloud is required: --set cloud=aws (gcp, azure, none)" .Values.cloud | quote }}
region: {{ required "region is required, as the provider writes it: --set region=us-west-2" .Values.region | quote }}
cluster: {{ required "cluster is required, this cluster's name: --set cluster=main" .Values.cluster | quote }}
metrics_port: {{ .Values.metrics.port }}
grpc_port: {{ .Values.service.port }}
max_grpc_connection_age: {{ .Values.maxGRPCConnectionAge | quote }}
{{- with .Values.inserter }}
num_inserter_workers: {{ .numInserterWorkers }}
ignore_udp: {{ .ignoreUDP }}
clickhouse_enabled: {{ .enabled }}
clickhouse_database: {{ .database | quote }}
{{- if hasPrefix "chdb:" .endpoint }}
{{- fail (printf "inserter.endpoint (%s): the image has no embedded ClickHouse: name a server, as clickhouse.example.org:9440" .endpoint) }}
{{- end }}
clickhouse_endpoint: {{ .endpoint | quote }}
clickhouse_dial_timeout: {{ .dialTimeout | quote }}
clickhouse_max_idle_connections: {{ .maxIdleConnections }}
clickhouse_batch_size: {{ .batchSize }}
clickhouse_batch_send_timeout: {{ .batchSendTimeout | quote }}
clickhouse_wait_for_async_insert: {{ .waitForAsyncInsert }}
clickhouse_skip_ping: {{ .skipPing }}
clickhouse_disable_tls: {{ .disableTLS }}
clickhouse_insecure_skip_verify: {{ .insecureSkipVerify }}
{{- end }}
{{- if include "kubenetmon-server.tls" . }}
tls_cert: /etc/kubenetmon-server/tls/tls.crt
tls_key: /etc/kubenetmon-server/tls/tls.key
{{- if include "kubenetmon-server.mutual" . }}
tls_client_ca: /etc/kubenetmon-server/tls/ca.crt
{{- end }}
{{- end }}
{{- if include "kubenetmon-server.tokens" . }}
require_token: true
token_audience: {{ .Values.tokens.audience | quote }}
token_accounts:
{{- range .Values.tokens.accounts }}
  - {{ . | quote }}
{{- end }}
{{- end }}
{{- if .Values.page.enabled }}
page_port: {{ .Values.page.port }}
{{- end }}
{{- with .Values.configuration }}
{{ toYaml . }}
{{- end }}
{{- end }}
