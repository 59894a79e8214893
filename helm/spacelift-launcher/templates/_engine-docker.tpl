{{/*
The Docker engine: an init container that keeps running, so it is there before the
launcher starts and until the launcher has ended.
*/}}
{{- define "engine.docker.container" -}}
{{- $engine := .Values.engine.docker -}}
name: engine
image: {{ include "launcher.imageOf" (list $engine.image "") }}
imagePullPolicy: {{ $engine.image.pullPolicy }}
restartPolicy: Always
# What runs must not reach is settled before there is an engine, and by its means; where
# it cannot be, there is none.
command:
  - /bin/sh
  - -ec
  - sh /etc/spacelift-launcher/network/network up; exec "$@"
  - engine
  {{- range $engine.entrypoint }}
  - {{ . | quote }}
  {{- end }}
# With the program's name first, the image adds no address of its own.
args:
  - dockerd
  - --host={{ include "engine.docker.host" . }}
  - --group=1983
  - --data-root=/var/lib/docker
  {{- with $engine.mtu }}
  - --mtu={{ int . }}
  - --default-network-opt=bridge=com.docker.network.driver.mtu={{ int . }}
  {{- end }}
  {{- range $engine.registryMirrors }}
  - --registry-mirror={{ . }}
  {{- end }}
  {{- range $engine.extraArgs }}
  - {{ . | quote }}
  {{- end }}
env:
  # The image makes no certificates for a TCP address that it does not have.
  - name: DOCKER_TLS_CERTDIR
    value: ""
  - name: DOCKER_HOST
    value: {{ include "engine.docker.host" . }}
  - name: SPACELIFT_RUNS_MAY_REACH_METADATA
    value: {{ .Values.launcher.runsMayReachMetadata | quote }}
  {{- if include "launcher.certificates" . }}
  - name: SSL_CERT_DIR
    value: /etc/ssl/certs:/etc/spacelift-launcher/certificates
  {{- end }}
  {{- with include "launcher.proxy" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with $engine.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
securityContext:
  {{- toYaml $engine.securityContext | nindent 2 }}
# No probe of its life: to restart it ends every run, and the launcher waits for an
# engine that does not answer.
startupProbe:
  exec:
    command: [docker, version]
  {{- toYaml $engine.startupProbe | nindent 2 }}
resources:
  {{- toYaml $engine.resources | nindent 2 }}
volumeMounts:
  - name: engine-socket
    mountPath: /run/engine
  - name: engine-data
    mountPath: /var/lib/docker
  - name: network
    mountPath: /etc/spacelift-launcher/network
    readOnly: true
  {{- if include "launcher.certificates" . }}
  - name: certificates
    mountPath: /etc/spacelift-launcher/certificates
    readOnly: true
  {{- end }}
  {{- with $engine.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "engine.docker.host" -}}
unix:///run/engine/docker.sock
{{- end }}

{{- define "engine.docker.volumes" -}}
{{- $storage := .Values.engine.docker.storage -}}
- name: engine-socket
  emptyDir:
    medium: Memory
    sizeLimit: 1Mi
- name: network
  configMap:
    name: {{ include "launcher.fullname" . }}-network
- name: engine-data
  {{- if $storage.ephemeralVolume }}
  ephemeral:
    volumeClaimTemplate:
      spec:
        accessModes: [ReadWriteOnce]
        {{- with $storage.ephemeralVolume.storageClassName }}
        storageClassName: {{ . }}
        {{- end }}
        resources:
          requests:
            storage: {{ required "engine.docker.storage.ephemeralVolume.size is missing" $storage.ephemeralVolume.size }}
  {{- else if $storage.sizeLimit }}
  emptyDir:
    sizeLimit: {{ $storage.sizeLimit }}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- end }}

{{/* What the launcher sees of the engine: its socket, and how full its disk is. */}}
{{- define "engine.docker.mounts" -}}
- name: engine-socket
  mountPath: /run/engine
  readOnly: true
- name: engine-data
  mountPath: /var/lib/docker
  readOnly: true
{{- end }}
