{{- define "tollkeeper.labels" -}}
app.kubernetes.io/name: tollkeeper
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tollkeeper.image" -}}
{{ required "image.repository: push the image of the repository's Dockerfile somewhere, and name it" .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "tollkeeper.container" -}}
image: {{ include "tollkeeper.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
env:
  - {name: TOLLKEEPER_CONFIG, value: /etc/tollkeeper/proxy.toml}
  - {name: TOLLKEEPER_LISTEN__WORKERS, value: {{ .Values.workers | quote }}}
volumeMounts:
  - {name: config, mountPath: /etc/tollkeeper, readOnly: true}
  - {name: scratch, mountPath: /tmp}
{{- end }}

{{- define "tollkeeper.pod" -}}
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
volumes:
  - name: config
    configMap: {name: {{ .Release.Name }}-config}
  - name: scratch
    emptyDir: {}
{{- end }}
