{{- define "launcher.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "launcher.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 38 | trimSuffix "-" }}
{{- else if contains (include "launcher.name" .) .Release.Name }}
{{- .Release.Name | trunc 38 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "launcher.name" .) | trunc 38 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "controlPlane.fullname" -}}
{{ include "launcher.fullname" . }}-control-plane
{{- end }}

{{/* What a workload is selected by: (list root component). */}}
{{- define "launcher.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "launcher.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Labels and annotations of an object, below its name: (list root component). */}}
{{- define "launcher.labels" -}}
{{- $root := index . 0 -}}
labels:
  {{- include "launcher.selector" . | nindent 2 }}
  app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ $root.Release.Service }}
  helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
  {{- with $root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* (list image appVersion) */}}
{{- define "launcher.imageOf" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default (index . 1) }}
{{- end }}
{{- end }}

{{- define "launcher.image" -}}
{{- $_ := required "image.repository: push what `make image` builds to a registry of yours, and name it" .Values.image.repository -}}
{{ include "launcher.imageOf" (list .Values.image .Chart.AppVersion) }}
{{- end }}

{{- define "launcher.serviceAccountName" -}}
{{- $account := .Values.launcher.serviceAccount -}}
{{ $account.create | ternary (default (include "launcher.fullname" .) $account.name) (default "default" $account.name) }}
{{- end }}

{{- define "controlPlane.serviceAccountName" -}}
{{- $account := .Values.controlPlane.serviceAccount -}}
{{ $account.create | ternary (default (include "controlPlane.fullname" .) $account.name) (default "default" $account.name) }}
{{- end }}

{{/* Of our own containers. */}}
{{- define "launcher.securityContext" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: true
runAsGroup: 1983
runAsNonRoot: true
runAsUser: 1983
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/*
The longest that a drain takes whose run was just claimed: what comes before its phases, for
which the run timeout does not count yet, the phases, their end, and room for the report.
*/}}
{{- define "launcher.gracePeriod" -}}
{{- $launcher := .Values.launcher -}}
{{- $before := add (int $launcher.pullTimeoutSeconds) (int $launcher.sourceTimeoutSeconds) (int $launcher.createTimeoutSeconds) (int $launcher.startTimeoutSeconds) -}}
{{- $end := add (max (int $launcher.planGraceSeconds) (int $launcher.applyGraceSeconds)) (mul 2 (int $launcher.stopTimeoutSeconds)) -}}
{{- $least := add $before (int $launcher.runTimeoutSeconds) $end 600 | int -}}
{{- $given := .Values.launcher.terminationGracePeriodSeconds -}}
{{- if kindIs "invalid" $given -}}
{{ $least }}
{{- else if lt (int $given) $least -}}
{{- fail (printf "launcher.terminationGracePeriodSeconds: %d would end applies of draining launchers; with these timeouts it has to be %d or more" (int $given) $least) -}}
{{- else -}}
{{ int $given }}
{{- end }}
{{- end }}

{{- define "launcher.proxy" -}}
{{- if .Values.proxy.existingSecret }}
{{- range list "HTTP_PROXY" "HTTPS_PROXY" "NO_PROXY" }}
- name: {{ . }}
  valueFrom:
    secretKeyRef:
      name: {{ $.Values.proxy.existingSecret }}
      key: {{ . }}
      optional: true
{{- end }}
{{- else }}
{{- range $name, $value := dict "HTTP_PROXY" .Values.proxy.http "HTTPS_PROXY" .Values.proxy.https "NO_PROXY" .Values.proxy.noProxy }}
{{- if $value }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "launcher.certificates" -}}
{{- if .Values.certificates.existingConfigMap -}}
{{ .Values.certificates.existingConfigMap }}
{{- else if .Values.certificates.pem -}}
{{ include "launcher.fullname" . }}-certificates
{{- end }}
{{- end }}

{{- define "launcher.policy" -}}
{{- if .Values.launcher.policy.existingConfigMap -}}
{{ .Values.launcher.policy.existingConfigMap }}
{{- else if .Values.launcher.policy.files -}}
{{ include "launcher.fullname" . }}-policy
{{- end }}
{{- end }}

{{- define "launcher.registries" -}}
{{- if .Values.launcher.registries.existingSecret -}}
{{ .Values.launcher.registries.existingSecret }}
{{- else if .Values.launcher.registries.config -}}
{{ include "launcher.fullname" . }}-registries
{{- end }}
{{- end }}

{{/* What the chart sets itself must not come a second time by another way. */}}
{{- define "launcher.checkNames" -}}
{{- $where := dict
  "SPACELIFT_TOKEN" "launcher.credentials"
  "SPACELIFT_TOKEN_FILE" "launcher.credentials"
  "SPACELIFT_POOL_PRIVATE_KEY" "launcher.credentials"
  "SPACELIFT_POOL_PRIVATE_KEY_FILE" "launcher.credentials"
  "SPACELIFT_LAUNCHER_WORKERS" "launcher.workers"
  "SPACELIFT_LAUNCHER_RUN_TIMEOUT" "launcher.runTimeoutSeconds"
  "SPACELIFT_LAUNCHER_PLAN_GRACE" "launcher.planGraceSeconds"
  "SPACELIFT_LAUNCHER_APPLY_GRACE" "launcher.applyGraceSeconds"
  "SPACELIFT_LAUNCHER_PULL_TIMEOUT" "launcher.pullTimeoutSeconds"
  "SPACELIFT_LAUNCHER_SOURCE_TIMEOUT" "launcher.sourceTimeoutSeconds"
  "SPACELIFT_LAUNCHER_CREATE_TIMEOUT" "launcher.createTimeoutSeconds"
  "SPACELIFT_LAUNCHER_START_TIMEOUT" "launcher.startTimeoutSeconds"
  "SPACELIFT_LAUNCHER_STOP_TIMEOUT" "launcher.stopTimeoutSeconds"
  "SPACELIFT_LAUNCHER_LISTEN" "launcher.listen"
  "SPACELIFT_LAUNCHER_STATE_DIR" "launcher.state"
  "SPACELIFT_LAUNCHER_WORKER_MEMORY" "launcher.workerMemory"
  "SPACELIFT_LAUNCHER_WORKER_CPUS" "launcher.workerCpus"
  "SPACELIFT_LAUNCHER_RUN_INITIALIZATION_POLICY" "launcher.policy"
  "SPACELIFT_LAUNCHER_DOCKER_AUTH_CONFIG" "launcher.registries"
  "SPACELIFT_LAUNCHER_DOCKER_AUTH_CONFIG_FILE" "launcher.registries"
  "ADDITIONAL_ROOT_CAS" "certificates"
  "ADDITIONAL_ROOT_CAS_FILE" "certificates"
  "SPACELIFT_RUNS_MAY_REACH_METADATA" "launcher.runsMayReachMetadata"
  "HTTP_PROXY" "proxy" "HTTPS_PROXY" "proxy" "NO_PROXY" "proxy"
  "DOCKER_HOST" "engine" -}}
{{- if hasKey .Values.launcher.settings "OTEL_EXPORTER_OTLP_HEADERS" }}
{{- fail "launcher.settings: OTEL_EXPORTER_OTLP_HEADERS is secret; give it in launcher.extraEnv, with valueFrom" }}
{{- end }}
{{- range .Values.launcher.extraEnv }}
{{- if and (eq .name "OTEL_EXPORTER_OTLP_HEADERS") (hasKey . "value") }}
{{- fail "launcher.extraEnv: OTEL_EXPORTER_OTLP_HEADERS is secret; give it with valueFrom" }}
{{- end }}
{{- end }}
{{- $names := keys .Values.launcher.settings -}}
{{- range .Values.launcher.extraEnv }}{{ $names = append $names .name }}{{ end -}}
{{- range $names | sortAlpha }}
{{- if hasKey $where . }}
{{- fail (printf "launcher.settings or launcher.extraEnv: %s is set by %s" . (get $where .)) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Where and how a pod runs: (list root values-of-the-workload). */}}
{{- define "launcher.podFields" -}}
{{- $root := index . 0 -}}
{{- $values := index . 1 -}}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- range $field := list "priorityClassName" "runtimeClassName" "dnsPolicy" }}
{{- with get $values $field }}
{{ $field }}: {{ . }}
{{- end }}
{{- end }}
{{- range $field := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "hostAliases" "dnsConfig" }}
{{- with get $values $field }}
{{ $field }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* The spec of a claim for a volume. */}}
{{- define "launcher.claim" -}}
accessModes:
  {{- toYaml .accessModes | nindent 2 }}
{{- with .storageClassName }}
storageClassName: {{ . }}
{{- end }}
resources:
  requests:
    storage: {{ .size }}
{{- end }}

{{/* Like launcher.labels, with an account's annotations: (list root component account). */}}
{{- define "launcher.accountLabels" -}}
{{- $root := index . 0 -}}
{{- $labels := include "launcher.labels" (list $root (index . 1)) | fromYaml -}}
{{- $annotations := merge (deepCopy (index . 2).annotations) $root.Values.commonAnnotations -}}
{{- if $annotations }}{{ $_ := set $labels "annotations" $annotations }}{{ end -}}
{{- toYaml $labels }}
{{- end }}

{{- define "controlPlane.environment" -}}
{{- $plane := .Values.controlPlane -}}
{{- if $plane.database.existingSecret }}
- name: PGPASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ $plane.database.existingSecret }}
      key: {{ $plane.database.passwordKey }}
{{- end }}
{{- if include "launcher.certificates" . }}
- name: SSL_CERT_DIR
  value: /etc/ssl/certs:/etc/spacelift-control-plane/certificates
{{- end }}
{{- include "launcher.proxy" . }}
{{- with $plane.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* (list root component name port values) */}}
{{- define "launcher.serviceMonitor" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index . 4 -}}
{{- $metadata := include "launcher.labels" (list $root $component) | fromYaml -}}
{{- $_ := set $metadata "labels" (merge (deepCopy $values.labels) $metadata.labels) -}}
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata:
  name: {{ index . 2 }}
  namespace: {{ $root.Release.Namespace }}
  {{- toYaml $metadata | nindent 2 }}
spec:
  selector:
    matchLabels:
      {{- include "launcher.selector" (list $root $component) | nindent 6 }}
  endpoints:
    - port: {{ index . 3 }}
      path: /metrics
      interval: {{ $values.interval }}
      scrapeTimeout: {{ $values.scrapeTimeout }}
{{- end }}
